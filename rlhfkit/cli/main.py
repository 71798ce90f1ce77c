"""The program `rlhfkit`: finds the command, resolves its settings, runs it, and answers with an exit status.

Only what a call needs is imported: `rlhfkit --help` reads the first line of every stage file, the help of a
command imports that one module, and no stage imports torch before it runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rlhfkit.cli import failures
from rlhfkit.cli.output import write_text
from rlhfkit.errors import UsageError
from rlhfkit.stages import PACKAGE, load, names


def main(argv: Sequence[str] | None = None, *, stages: str = PACKAGE) -> NoReturn:
    """Entry point of the console script and of `python -m rlhfkit`; ends the process."""
    _occupy_closed_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    status = call(arguments, stages=stages)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # closed, or None
            stream.flush()
    # Not sys.exit: threads of libraries, requests in flight and the teardown of torch must not delay the end
    # of what is finished, nor change its status.
    os._exit(status)


def call(arguments: Sequence[str], *, stages: str = PACKAGE) -> int:
    """Run one command line within this process; returns the exit status."""
    command = None
    try:
        known = names(stages)
        command = arguments[0] if arguments and arguments[0] in known else None
        if command is None:
            return _without_command(arguments, known, stages)
        from rlhfkit.cli.run import run_command

        return run_command(command, arguments[1:], stages=stages)
    except BaseException as error:  # panics of libraries written in Rust are no Exception
        return failures.report(error, command, debug="--debug" in arguments, rank=process_rank())


def process_rank() -> int:
    """The number of this process in a torchrun job; 0 outside one."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def help_width() -> int:
    """Columns for help: those of the terminal (or COLUMNS), at most 100; 80 elsewhere."""
    try:
        columns = int(os.environ.get("COLUMNS", "")) or 80
    except ValueError:
        try:
            columns = os.get_terminal_size(1).columns or 80
        except OSError:
            columns = 80
    return max(40, min(columns, 100))


def _without_command(arguments: Sequence[str], known: dict[str, str], stages: str) -> int:
    from rlhfkit.cli.help import command_help, root_help

    first, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if first == "--version":
        from rlhfkit import __version__

        write_text(f"rlhfkit {__version__}\n")
        return 0
    if first in ("-h", "--help") or (first == "help" and (not rest or rest[0] in ("-h", "--help"))):
        write_text(root_help(stages, help_width()))
        return 0
    if first == "help":
        if rest[0] not in known:
            raise _unknown(rest[0], known)
        write_text(command_help(load(rest[0], stages), help_width()))
        return 0
    if not arguments:
        print(root_help(stages, help_width()), end="", file=sys.stderr)
        return UsageError.exit_code
    raise _unknown(first, known)


def _unknown(word: str, known: dict[str, str]) -> UsageError:
    from rlhfkit.ui.flags import did_you_mean

    otherwise = "`rlhfkit --help` lists the commands"
    if word.startswith("-"):
        choices = ["--help", "--version"]
        if len(word) > 1:
            otherwise = "options of a command stand after its name"
        return UsageError(f"no such option: {word}", hint=did_you_mean(word, choices, otherwise=otherwise))
    return UsageError(
        f"no such command: {word}", hint=did_you_mean(word, [*known, "help"], otherwise=otherwise)
    )


def _occupy_closed_descriptors() -> None:
    """Put the null device where a standard stream was closed, lest the next file opened take its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
