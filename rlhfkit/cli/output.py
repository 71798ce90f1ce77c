"""Standard output and output files of commands, with every write error told apart."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlhfkit.cli.failures import ClosedPipe
from rlhfkit.errors import CannotCreate, InputMissing, InputOutputError, UsageError
from rlhfkit.stages import Stage

Write = Callable[[bytes], None]


def standard_output() -> Write:
    """A function that writes bytes to standard output and flushes them.

    It raises ClosedPipe when the reader has gone and InputOutputError for any other failure; after either,
    descriptor 1 leads to the null device, so that the interpreter's own flush at exit cannot fail again.
    """
    if sys.stdout is None:
        raise InputOutputError("standard output is closed", where="<stdout>")
    stream = sys.stdout.buffer
    shown = _for_terminal if sys.stdout.isatty() else None

    def write(data: bytes) -> None:
        try:
            stream.write(shown(data) if shown else data)
            stream.flush()
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)
            if error.errno == errno.EPIPE:
                raise ClosedPipe from None
            raise InputOutputError(f"cannot write: {_reason(error)}", where="<stdout>") from None

    return write


def _for_terminal(data: bytes) -> bytes:
    from rlhfkit.ui.terminal import safe_json

    return safe_json(data.decode()).encode()


def write_text(text: str) -> None:
    """Write help, a version or another text of our own to standard output."""
    standard_output()(text.encode())


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def output_file(stage: Stage, config: Any) -> str | None:
    """The file that records go to; None for standard output and for a command that writes its own files."""
    if stage.output != "records" or getattr(config, "dry_run", False) or config.output == "-":
        return None
    path: str | None = config.output
    return path


@contextmanager
def _destination(path: str | None, force: bool) -> Iterator[Write]:
    if path is None:
        yield standard_output()
        return
    from rlhfkit.files import atomic_file

    with atomic_file(path, force=force) as file:

        def write(data: bytes) -> None:
            file.write(data)

        yield write


def write_records(batches: Iterable[Sequence[Any]], path: str | None, *, force: bool) -> None:
    """Write batches of records as JSON lines: to `path`, whole or not at all, or to standard output."""
    with _destination(path, force) as write:
        from rlhfkit.data.jsonl import encode_lines

        for batch in batches:
            if batch:
                write(encode_lines(batch))


def write_summary(write: Write, summary: Mapping[str, object]) -> None:
    """Write the one JSON line that a trainer ends with."""
    from rlhfkit.data.jsonl import encode

    write(encode(dict(summary)) + b"\n")


def check_inputs(inputs: Sequence[str], output: str | None) -> None:
    """Refuse inputs that are missing or that are the output as well. Raises InputMissing, CannotCreate."""
    if "-" in inputs and sys.stdin is None:
        raise InputMissing("standard input is closed", where="<stdin>")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "-" in inputs:
        raise UsageError(
            "several processes cannot share standard input", where="-", hint="name a file that all can read"
        )
    for source in inputs:
        if _same_regular_file(0 if source == "-" else source, 1 if output is None else output):
            name = "<stdin>" if source == "-" else source
            raise CannotCreate("is input and output at once", where=name, hint="write to another file")


def _same_regular_file(source: str | int, target: str | int) -> bool:
    try:
        first, second = os.stat(source), os.stat(target)
    except OSError:
        return False
    return stat.S_ISREG(first.st_mode) and os.path.samestat(first, second)
