"""docs/families.md: its table is made here from the cases that are tested; RLHFKIT_WRITE_DOCS=1 rewrites it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tiny_models import CASES, GEMMA, GPT2, SMALL

from rlhfkit.models.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BETWEEN = re.compile(r"(?<=<!-- table: begin -->\n).*(?=<!-- table: end -->)", re.DOTALL)
TITLES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3, text",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
}


def tried(model_type: str) -> str:
    """The entries of config.json that the cases of a family vary."""
    usual = {**SMALL, **GEMMA, **GPT2}
    found = set()
    for kind, settings in CASES.values():
        if kind != model_type:
            continue
        for name, value in settings.items():
            if name == "rope_parameters":
                inner = value.values() if "full_attention" in value else [value]
                found |= {f"rope {one['rope_type']}" for one in inner}
            elif name not in usual or usual[name] != value:
                found.add(f"`{name}`")
    return ", ".join(sorted(found, key=lambda name: name.strip("`")))


def table() -> str:
    rows = [
        "| family | `model_type` | language model | reward model | settings tried |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {TITLES[f.model_type]} | `{f.model_type}` | `{f.causal}` | `{f.scalar}` | {tried(f.model_type)} |"
        for f in FAMILIES.values()
    ]
    return "\n".join(rows) + "\n"


def test_the_table_is_current():
    page = PAGE.read_text()
    current = BETWEEN.sub(lambda _: table(), page)
    if os.environ.get("RLHFKIT_WRITE_DOCS"):
        PAGE.write_text(current)
    else:
        assert page == current


def test_every_family_is_tested_plain_and_unusual():
    for model_type in FAMILIES:
        assert sum(kind == model_type for kind, _ in CASES.values()) >= 2, model_type
