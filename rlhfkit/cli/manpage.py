"""Manual pages in roff, for man(1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhfkit.cli.help import (
    EXIT_CODES,
    ROOT_USAGE,
    flag_help,
    flag_label,
    inputs_help,
    is_prose,
    paragraphs,
    settings_help,
    usage,
)
from rlhfkit.stages import Stage
from rlhfkit.ui.flags import all_flags, grouped


def root(chapters: Sequence[tuple[str, Sequence[Stage]]]) -> str:
    """rlhfkit(1)."""
    lines = [*_head("rlhfkit", "from raw text to a policy trained on human preferences")]
    lines += [".SH SYNOPSIS", _text(ROOT_USAGE), ".SH COMMANDS"]
    for title, stages in chapters:
        lines.append(f".SS {_text(title)}")
        for stage in stages:
            lines += [".TP", f".BR rlhfkit\\-{_text(stage.name)} (1)", _text(stage.summary)]
    return _page([*lines, *_exit_status()])


def command(stage: Stage) -> str:
    """rlhfkit-COMMAND(1)."""
    lines = [*_head(f"rlhfkit-{stage.name}", stage.summary.rstrip("."))]
    lines += [".SH SYNOPSIS", _text(usage(stage)), ".SH DESCRIPTION", _text(stage.summary)]
    for paragraph in paragraphs(stage)[1:]:
        text = [_text(line) for line in paragraph.split("\n")]
        lines += [".PP", *text] if is_prose(paragraph) else [".PP", ".nf", *text, ".fi"]
    if stage.inputs:
        lines += [".TP", f".I {_text(stage.inputs.metavar)}", _text(inputs_help(stage))]
    lines.append(".SH OPTIONS")
    for title, flags in grouped(all_flags(stage.config)):
        lines.append(f".SS {_text(title)}")
        for flag in flags:
            lines += [".TP", f".B {_text(flag_label(flag))}", _text(flag_help(flag))]
    lines += [".SH EXAMPLES", ".nf", *(_text(example) for example in stage.examples), ".fi"]
    lines += [".SH ENVIRONMENT", _text(settings_help(stage)), *_exit_status()]
    return _page([*lines, ".SH SEE ALSO", ".BR rlhfkit (1)"])


def _head(name: str, about: str) -> Iterator[str]:
    yield '.\\" Made by python -m rlhfkit.cli.docs, not to be edited.'
    yield f'.TH {_text(name.upper())} 1 "" rlhfkit "User Commands"'
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(about)}"


def _exit_status() -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield from (".TP", f".B {code}", _text(meaning))


def _text(text: str) -> str:
    """Text that roff takes as text: no escapes, no requests, hyphens that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    text = text.replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{text}" if text.startswith(".") else text


def _page(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
