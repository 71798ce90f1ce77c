"""What every command must offer, whoever wrote it. Commands are found as the program finds them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cli_helpers import TOP, environment, python

from rlhfkit.cli.help import EXIT_CODES, command_help, paragraphs
from rlhfkit.config import CommonConfig, FilterConfig, Inputs
from rlhfkit.stages import SECTIONS, load, names, sections
from rlhfkit.ui.flags import all_flags, flags, grouped

COMMANDS = sorted(names())
HEAVY = (
    "torch",
    "numpy",
    "tokenizers",
    "safetensors",
    "msgspec",
    "rich",
    "jinja2",
    "matplotlib",
    "transformers",
)
WATCHED = f"""
import sys
from rlhfkit.cli.main import call
status = call(sys.argv[1:])
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(params=COMMANDS)
def stage(request):
    return load(request.param)


def watched(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python(WATCHED, *words), capture_output=True, text=True, env=environment(), check=False, timeout=60
    )


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["help"], *([name, "-h"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words):
    done = watched(*words)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


def test_completion_imports_nothing_heavy():
    done = watched("completion", "bash")
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_root_help_lists_every_command_once_in_the_order_of_the_pipeline():
    listed = [name for _, members in sections() for name in members]
    assert sorted(listed) == COMMANDS
    pipeline = [name for _, members in SECTIONS for name in members]
    known = [name for name in listed if name in pipeline]
    assert known == sorted(known, key=pipeline.index)


def test_module_says_what_it_is(stage):
    assert stage.output in ("records", "summary", "text", "none")
    assert stage.inputs is None or isinstance(stage.inputs, Inputs)
    assert issubclass(stage.config, CommonConfig)
    if stage.output == "records":
        assert issubclass(stage.config, FilterConfig)


def test_help_has_a_sentence_two_examples_groups_and_exit_codes(stage):
    text = command_help(stage, width=100)
    assert stage.summary.endswith(".")
    assert len(stage.summary) <= 100, "the summary is one line of `rlhfkit --help`"
    assert names()[stage.name] == stage.summary
    assert len(stage.examples) >= 2
    assert all(f"rlhfkit {stage.name}" in example for example in stage.examples)
    assert all(f"  {example}\n" in text for example in stage.examples)
    for title, _ in grouped(all_flags(stage.config)):
        assert f"\n{title}:\n" in text
    for code, meaning in EXIT_CODES:
        assert f"{code} {meaning}" in " ".join(text.split())
    assert all(line == line.rstrip() for line in text.splitlines())
    assert all(len(line) <= 110 for paragraph in paragraphs(stage) for line in paragraph.splitlines())


def test_flags_have_help_and_do_not_clash(stage):
    spellings = [
        word
        for flag in all_flags(stage.config)
        for word in (*flag.spellings, *([flag.off] if flag.off else []))
    ]
    assert len(spellings) == len(set(spellings))
    assert not {"-h", "--help", "--version"} & set(spellings)
    for flag in flags(stage.config):
        assert flag.about.help.endswith((".", ")")), flag.field
        if not flag.required and flag.default not in (None, ()):
            assert flag.from_value(flag.default, flag.long) == flag.default, "the default is a legal value"


def test_examples_are_legal_command_lines(stage):
    """Every example parses; nothing is run."""
    import shlex

    from rlhfkit.cli.params import parse
    from rlhfkit.cli.settings import resolve

    for example in stage.examples:
        lexer = shlex.shlex(example, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        parts = list(lexer)
        begin = max(n for n in range(1, len(parts)) if parts[n - 1 : n + 1] == ["rlhfkit", stage.name])
        words = []
        for word in parts[begin + 1 :]:
            if word[0] in "<>|&()":
                break
            words.append(word)
        given, _ = parse(stage, words)
        resolve(stage.name, stage.config, given, environ={}, commands=COMMANDS)


def test_unknown_flag_is_refused_with_a_suggestion(stage):
    done = subprocess.run(
        python(WATCHED, stage.name, "--queit"), capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 2
    assert (
        f"rlhfkit {stage.name}: error: no such option: --queit\nhint: did you mean --quiet?\n" in done.stderr
    )


def test_there_is_a_page(stage):
    page = TOP / "docs" / "commands" / f"{stage.name}.md"
    assert page.is_file(), f"write {page.relative_to(TOP)}"
    assert f"rlhfkit {stage.name}" in page.read_text(encoding="utf-8")


def test_every_flag_can_be_set_in_a_file(stage, tmp_path):
    """The defaults, written into a file, give the same settings back, from the file."""
    from rlhfkit.cli.settings import resolve

    lines, given = [f"[{stage.name}]"], {}
    for flag in flags(stage.config):
        if flag.required:
            given[flag.field] = "x" if flag.kind is str else "1"
        elif flag.default is not None:
            value = list(flag.default) if flag.multiple else flag.default
            lines.append(f"{flag.field} = {json.dumps(value)}")
    path: Path = tmp_path / "conf.toml"
    path.write_text("\n".join(lines))
    plain, _ = resolve(stage.name, stage.config, given, environ={}, commands=COMMANDS)
    config, sources = resolve(
        stage.name, stage.config, {**given, "config": str(path)}, environ={}, commands=COMMANDS
    )
    assert config == plain
    assert "file" in sources.values()
