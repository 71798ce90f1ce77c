"""The examples on the pages about scorers are run, and the numbers there are the program's own."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfkit.scorers import command, http
from tests.conftest import Tiny, write_jsonl

DOCS = Path(__file__).parents[2] / "docs"
LENGTH = "import json, sys\nfor line in sys.stdin: print(json.dumps({'score': len(json.loads(line)['completion'])}))\n"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A folder with everything that the pages name."""
    for name, target in (("rm", tiny.rm), ("sft", tiny.sft), ("base", tiny.base)):
        (tmp_path / name).symlink_to(target)
    samples = [
        {"prompt": "red cat ->", "completion": " cat red"},
        {"prompt": "sun ->", "completions": [" sun", " x"]},
    ]
    write_jsonl(tmp_path / "samples.jsonl", samples)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "red cat ->"}, {"prompt": "sun ->"}])
    shutil.copy(tiny.rankings, tmp_path / "rankings.jsonl")
    (tmp_path / "rankings.jsonl.gz").write_bytes(gzip.compress(tiny.rankings.read_bytes()))
    (tmp_path / "gold.py").write_text(LENGTH)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "rlhfkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rlhfkit "$@"\n')
    program.chmod(0o755)
    return tmp_path


def shell(text: str, folder: Path) -> str:
    """Standard output of some shell text that must succeed."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "RLHFKIT_SAMPLE_MAX_NEW_TOKENS": "8"}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", ["commands/score.md", "commands/inspect.md"])
def test_examples(page: str, folder: Path):
    for block in blocks(page, "sh"):
        if "jq" not in block or shutil.which("jq"):
            shell(block, folder)
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            lines = part.splitlines()
            end = next(i for i in range(1, len(lines)) if not lines[i].startswith(">"))
            text = "\n".join([lines[0], *(line[1:] for line in lines[1:end])])
            pattern = ".*".join(re.escape(piece) for piece in "\n".join(lines[end:]).split("..."))
            told = shell(text, folder).rstrip("\n")
            assert re.fullmatch(pattern, told, re.S), told


def test_the_program_on_the_page_is_complete(folder: Path):
    program, from_python = blocks("scorers.md", "python")
    (folder / "gold.py").write_text(program)
    told = shell("rlhfkit score samples.jsonl -r 'cmd:python gold.py'", folder)
    assert '"score":-8.0' in told
    shell(f'"{sys.executable}" - <<"END"\n{from_python}\nassert len(scores) == 1\nEND', folder)


def test_numbers_on_the_page():
    page = (DOCS / "scorers.md").read_text()
    assert command.KEPT_STDERR_LINES == 20
    assert "last 20 lines" in page
    assert command.CLOSE_SECONDS == 5
    assert "still runs 5 seconds after" in page
    assert http.ATTEMPTS == 6
    assert "tried up to six times" in page
    assert http.MAX_INVALID_SHARE == 0.02
    assert "More than 2%" in page
    assert http.MAX_REPLY_BYTES == 2**20
    assert "longer than 1 MiB" in page
    assert all(str(status) in page for status in http.PASSING_STATUSES if status < 500)
