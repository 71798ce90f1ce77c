"""The documentation holds together: pages are linked, links lead somewhere, command lines in it are legal."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from rlhfkit.cli.params import HelpWanted, parse
from rlhfkit.cli.settings import resolve
from rlhfkit.errors import UsageError
from rlhfkit.stages import load, names
from rlhfkit.ui.flags import all_flags

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *TOP.glob("*.md")])
COMMANDS = sorted(names())
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(TOP))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by GitHub's rule."""
    found: set[str] = set()
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#+ +(.*)$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        base = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = next(n for n in itertools.count() if (f"{base}-{n}" if n else base) not in found)
        found.add(f"{base}-{count}" if count else base)
    return found


def links(page: Path) -> list[str]:
    return LINK.findall(re.sub(r"`[^`\n]*`", "`", FENCE.sub("", page.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link} leads nowhere"
        assert target.is_relative_to(TOP), f"{name_of(page)}: {link} leaves the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(page)}: {link}: no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, left = set[Path](), [DOCS / "index.md"]
    while left:
        page = left.pop()
        seen.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        left += [t for t in targets if t.suffix == ".md" and t.is_relative_to(DOCS) and t not in seen]
    assert {name_of(p) for p in DOCS.rglob("*.md")} == {name_of(p) for p in seen}
    direct = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "index.md")}
    assert {name_of(p) for p in DOCS.glob("*.md")} - {"docs/index.md"} <= {
        name_of(p) for p in direct if p.is_relative_to(TOP)
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_knows_its_flags(command: str) -> None:
    """It leads to the reference, which names every flag, and every flag that it names itself exists."""
    page = DOCS / "commands" / f"{command}.md"
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# `rlhfkit {command}`\n")
    assert f"../reference.md#rlhfkit-{command}" in links(page)
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    section = reference.partition(f"\n### rlhfkit {command}\n")[2].partition("\n### ")[0]
    for flag in all_flags(load(command).config):
        if flag.long != "--help":
            assert flag.long in section
    known = {
        word for name in COMMANDS for f in all_flags(load(name).config) for word in (*f.spellings, f.off)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", FENCE.sub("", text)))
    assert named - known <= {"--help", "--version", "--nproc-per-node"}


def command_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(command, words after it) of every call of rlhfkit in a page's shell blocks."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "console":
            block = "\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))
        elif language not in {"sh", "bash"}:
            continue
        block = re.sub(r"<<'?(\w+)'?(.*?)\n.*?^\1$", r"\2", block, flags=re.M | re.S)  # here-documents
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            for number, word in enumerate(words):
                if word == "rlhfkit" and (number == 0 or starts_command(words[number - 1])):
                    rest = list(
                        itertools.takewhile(lambda w: not set(w) <= set("();<>|&"), words[number + 1 :])
                    )
                    if rest:
                        yield rest[0], rest[1:]


def starts_command(before: str) -> bool:
    """Whether a command may follow this word."""
    return (
        set(before) <= set("();|&")
        or before in {"do", "then", "time", "$"}
        or "=" in before
        or before == "-m"
    )


CASES = [(page, command, words) for page in PAGES for command, words in command_lines(page)]


def test_there_are_many_command_lines() -> None:
    assert len(CASES) > 40
    assert {command for _, command, _ in CASES} >= {"sft", "train-rm", "ppo", "sample", "rank2pairs"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_are_legal(page: Path) -> None:
    """Commands exist, and so do flags and choices; nothing is run. `...` stands for whatever is required."""
    if page.name == "reference.md":  # its synopses are generated
        return
    for command, words in (case[1:] for case in CASES if case[0] == page):
        if command in {"COMMAND", "TRAINER", "--help", "--version", "help"}:
            continue
        line = f"{name_of(page)}: rlhfkit {command} {shlex.join(words)}"
        assert command in COMMANDS, line
        if command == "completion" and words == ["bash|zsh|fish"]:
            continue
        stage = load(command)
        try:
            given, _ = parse(stage, ["1" if word == "N" else word for word in words if word != "..."])
            given.pop("config", None)
            resolve(command, stage.config, given, environ={}, commands=COMMANDS)
        except HelpWanted:
            continue
        except UsageError as error:
            if "..." not in words or "is required" not in str(error):
                raise AssertionError(f"{line}: {error}") from None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_it_compiles(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(block, name_of(page), "exec")
