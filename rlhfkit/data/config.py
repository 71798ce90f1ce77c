"""Flags of the commands that read whole texts; imports nothing heavy, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhfkit.config import INPUT, RUN, Inputs, ReadConfig, option

TEXT_INPUTS = Inputs(
    "TEXT", "Text files or JSONL files with a `text` field; `-` or nothing for standard input.", kind="text"
)


@dataclass(frozen=True, kw_only=True)
class TextConfig(ReadConfig):
    """How texts are read."""

    field: str = option(
        "text", group=INPUT, metavar="NAME", help="Field of a JSON line that holds the text (dotted path)."
    )
    format: Literal["auto", "text", "jsonl"] = option(
        "auto",
        group=INPUT,
        help="What the inputs hold (auto: JSON lines if named .jsonl, .ndjson or .json, or if standard"
        " input starts with `{`; else plain text).",
    )
    split: Literal["none", "blank-line"] = option(
        "none",
        group=INPUT,
        help="Documents of plain text: a whole file each, or what stands between blank lines.",
    )
    dry_run: bool = option(
        False,
        group=RUN,
        shapes_result=False,
        help="Read and check everything, say what came out, write nothing.",
    )
