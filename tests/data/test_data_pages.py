"""The examples on the page about formats are of the kinds it says, and the numbers of rank2pairs' page hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfkit.data.describe import describe_jsonl

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = re.findall(r"^### (.*?)\n.*?^```jsonl\n(.*?)^```", (DOCS / "formats.md").read_text(), re.M | re.S)


@pytest.mark.parametrize(("kind", "lines"), SECTIONS, ids=[kind for kind, _ in SECTIONS])
def test_examples_are_what_they_are_said_to_be(kind: str, lines: str, tmp_path: Path):
    path = tmp_path / "examples.jsonl"
    path.write_text(lines)
    facts, error = describe_jsonl(path)
    assert error is None
    kinds = {kind.lower()}
    if kind == "Ranking":
        kinds.add("scored sample")  # which is a ranking, too
    elif kind == "Demonstration":
        kinds.add("text")  # as is any text
    assert set(facts["kinds"]) <= kinds  # type: ignore[call-overload]
    assert facts["records"] == len(lines.splitlines()) > 0


def test_every_kind_has_a_section():
    assert len(SECTIONS) == 8


def test_the_example_of_rank2pairs(tmp_path: Path):
    page = (DOCS / "commands" / "rank2pairs.md").read_text()
    (block,) = re.findall(r"^```console\n(.*?)^```", page, re.M | re.S)
    given = json.loads(block.split("'")[1])
    printed = [line for line in block.splitlines() if line.startswith("{")]
    done = subprocess.run(
        [sys.executable, "-m", "rlhfkit", "rank2pairs"],
        input=block.split("'")[1].encode() + b"\n",
        capture_output=True,
        check=True,
    )
    assert given["ranking"] == [[0, 2], [1]]
    assert done.stdout.decode().splitlines() == printed
