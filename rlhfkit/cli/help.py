"""Help texts, built from a stage's docstring, examples and flags."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

from rlhfkit.stages import Stage, sections
from rlhfkit.ui.flags import Flag, all_flags, grouped, variable_prefix

ROOT_USAGE = "rlhfkit COMMAND [OPTIONS] [INPUTS]..."
EXIT_CODES = (
    (0, "done"),
    (1, "the run failed"),
    (2, "wrong usage"),
    (65, "bad data"),
    (66, "input missing"),
    (70, "internal error"),
    (73, "output exists or cannot be created"),
    (74, "read or write error"),
    (75, "output locked by another run"),
    (130, "interrupted"),
    (141, "closed pipe"),
    (143, "terminated"),
)
_LABEL_WIDTH = 26


def root_help(package: str, width: int) -> str:
    """`rlhfkit --help`; imports no stage."""
    lines = [f"Usage: {ROOT_USAGE}", ""]
    lines += _wrap("From raw text to a policy trained on human preferences, one command per stage.", width)
    for title, members in sections(package):
        lines += ["", f"{title}:"]
        for name, summary in members.items():
            lines += _entry(name, summary, width, label_width=18)
    lines += ["", "Options:"]
    lines += _entry("-h, --help", "Show this text; `rlhfkit COMMAND --help` for a command.", width, 18)
    lines += _entry("--version", "Show the version.", width, 18)
    return "\n".join(lines) + "\n"


def usage(stage: Stage) -> str:
    """The line after "Usage:"."""
    positional = ""
    if spec := stage.inputs:
        positional = spec.metavar if spec.single else f"{spec.metavar}..."
        positional = " " + (positional if spec.required else f"[{positional}]")
    needed = "".join(
        f" {flag.spellings[0]} {flag.metavar}" for flag in all_flags(stage.config) if flag.required
    )
    return f"rlhfkit {stage.name}{needed} [OPTIONS]{positional}"


def command_help(stage: Stage, width: int) -> str:
    """`rlhfkit COMMAND --help`."""
    lines = [*_short_lines(stage, width), ""]
    if spec := stage.inputs:
        lines += ["Arguments:", *_entry(spec.metavar, inputs_help(stage), width), ""]
    for title, members in grouped(all_flags(stage.config)):
        lines.append(f"{title}:")
        for flag in members:
            lines += _entry(flag_label(flag), flag_help(flag), width)
        if members[-1].field == "config":
            lines += _entry("-h, --help", "Show this text.", width)
        lines.append("")
    lines += _wrap(settings_help(stage), width)
    codes = ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES)
    lines += ["", *_wrap(f"Exit codes: {codes}.", width)]
    return "\n".join(lines) + "\n"


def short_help(stage: Stage, width: int) -> str:
    """What a command says when it was started on a terminal without input."""
    lines = [*_short_lines(stage, width, whole=False), ""]
    lines.append(f"`rlhfkit {stage.name} --help` shows all options; `-` reads the terminal.")
    return "\n".join(lines) + "\n"


def _short_lines(stage: Stage, width: int, *, whole: bool = True) -> list[str]:
    lines = [*_wrap(f"Usage: {usage(stage)}", width, indent="    "), "", *_wrap(stage.summary, width)]
    for paragraph in paragraphs(stage)[1:] if whole else ():
        lines += ["", *(_wrap(paragraph, width) if is_prose(paragraph) else paragraph.split("\n"))]
    return [*lines, "", "Examples:", *(f"  {example}" for example in stage.examples)]


def paragraphs(stage: Stage) -> list[str]:
    """The docstring cut at blank lines, without indentation common to the lines after the first."""
    first, _, rest = stage.doc.partition("\n")
    text = f"{first}\n{textwrap.dedent(rest)}".strip()
    return re.split(r"\n[ \t]*\n", text)


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph may be wrapped anew: no line of it is indented or a list item."""
    return not re.search(r"^(\s|[-*|] )", paragraph, flags=re.MULTILINE)


def inputs_help(stage: Stage) -> str:
    """The help of the positionals."""
    assert stage.inputs
    reads = stage.inputs.stdin and not stage.inputs.required
    return stage.inputs.help + (" [default: standard input]" if reads else "")


def flag_label(flag: Flag) -> str:
    """`-o, --output FILE`."""
    names = list(flag.spellings)
    if flag.off:
        names[-1] += f"/{flag.off}"
    return " ".join(filter(None, (", ".join(names), flag.metavar)))


def flag_help(flag: Flag) -> str:
    """The help of a flag with its default, and its range where that is not obvious."""
    notes = []
    if flag.about.above is not None or (flag.about.maximum or math.inf) < 2**31:
        notes.append(flag.range_text)
    if flag.required:
        notes.append("required")
    elif flag.default_text:
        notes.append(f"default: {flag.default_text}")
    return flag.about.help + (f" [{'; '.join(notes)}]" if notes else "")


def settings_help(stage: Stage) -> str:
    """Where settings may also stand."""
    return (
        f"Every flag can also be set as {variable_prefix(stage.name)}<FLAG> in the environment and in table "
        f"[{stage.name}] of the --config file; a flag beats the environment beats the file."
    )


def _entry(label: str, text: str, width: int, label_width: int = _LABEL_WIDTH) -> Sequence[str]:
    indent = " " * (label_width + 2)
    wrapped = _wrap(text, width, first=indent, indent=indent)
    head = f"  {label}"
    if len(head) >= len(indent):
        return [head, *wrapped]
    return [head + wrapped[0][len(head) :], *wrapped[1:]]


def _wrap(text: str, width: int, *, first: str = "", indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first]
