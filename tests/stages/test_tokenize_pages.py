"""The console examples of the pages about tokenizers are run and compared with what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfkit.data.chat import DEFAULT_TEMPLATE, MEMORY, OUTPUT, SECONDS, ChatTemplate
from rlhfkit.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from tests.data.families import TEXT

DOCS = Path(__file__).parents[2] / "docs"


def steps(page: str) -> list[tuple[str, str]]:
    """(command, what it prints) of the console blocks of a page."""
    blocks = re.findall(r"^```console\n(.*?)^```", (DOCS / "commands" / page).read_text(), re.M | re.S)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.M)[1:]]
    return [(command, printed) for command, _, printed in (part.partition("\n") for part in parts)]


@pytest.mark.parametrize("page", ["train-tokenizer.md", "tokenize.md"])
def test_examples(page: str, tmp_path: Path) -> None:
    if page == "tokenize.md":
        (tmp_path / "tok").mkdir()
        train_tokenizer([TEXT], 400).save(tmp_path / "tok")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "rlhfkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rlhfkit "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    assert steps(page)
    for command, printed in steps(page):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, text=True, capture_output=True, check=True
        )
        told = [line for line in done.stderr.splitlines() if not re.match("(train-)?tokeniz", line)]
        shown = "\n".join([*done.stdout.splitlines(), *told])
        pattern = ".*".join(re.escape(piece) for piece in printed.rstrip("\n").split("..."))
        assert re.fullmatch(pattern, shown), f"{command}\n{shown}"


def test_chat_templates_page() -> None:
    page = (DOCS / "chat-templates.md").read_text()
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    assert ChatTemplate(DEFAULT_TEMPLATE, {}, where="").render(chat) in page
    assert f"| time | {SECONDS:g} seconds |" in page
    assert f"| memory | {MEMORY >> 20} MiB |" in page
    assert f"| output | {OUTPUT >> 20} MiB more" in page


def test_special_tokens_on_the_page() -> None:
    page = (DOCS / "commands" / "train-tokenizer.md").read_text().replace("\\|", "|")
    assert all(f"`{token}`" in page for token in SPECIAL_TOKENS)
