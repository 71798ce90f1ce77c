"""docs/fidelity.md is true: its tests and flags exist, its presets are the code's, no invariant is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from rlhfkit.engine.presets import CELLS, PRESETS, shown
from rlhfkit.stages import load, names
from rlhfkit.ui.flags import all_flags

TOP = Path(__file__).parents[1]
PAGE = (TOP / "docs" / "fidelity.md").read_text(encoding="utf-8")
TESTS = {
    name: path
    for path in sorted((TOP / "tests").rglob("test_*.py"))
    for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
}


def rows() -> Iterator[list[str]]:
    """The cells of every row of every table, heads and rules left out."""
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith(("| detail", "| setting", "| invariant")):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_named_tests_exist() -> None:
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(set(named)) > 80
    assert set(named) <= TESTS.keys()
    for path in re.findall(r"`(tests/[\w/.]+)`", PAGE):
        assert (TOP / path).exists(), path


def test_every_detail_names_a_test() -> None:
    for row in rows():
        if len(row) == 5:
            assert "`" in row[4], row[0]


def test_named_flags_exist() -> None:
    known = {word for name in names() for f in all_flags(load(name).config) for word in (*f.spellings, f.off)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", PAGE)) <= known


def test_no_invariant_is_missing() -> None:
    numbers = [int(n) for n in re.findall(r"^\| I(\d+) ", PAGE, re.M)]
    assert numbers == list(range(1, 50))


def presets_table() -> str:
    """The table of the page from the code; what a source leaves open is in italics."""
    extra = [s for p in PRESETS.values() for s in p.settings if s not in CELLS]
    lines = ["| setting | " + " | ".join(PRESETS) + " |", "|" + "---|" * (len(PRESETS) + 1)]
    for setting in dict.fromkeys([*CELLS, *extra]):
        flag = f"`--{setting.replace('_', '-')}`"
        cells = []
        for preset in PRESETS.values():
            value = shown(preset.settings[setting]) if setting in preset.settings else ""
            cells.append(f"*{value}*" if setting in preset.ours else value)
        lines.append(f"| {flag} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_presets_of_the_page_are_those_of_the_code() -> None:
    assert presets_table() in PAGE, presets_table()
