"""From an exception to lines on standard error and an exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator

from rlhfkit.errors import (
    BadRecords,
    DataError,
    InputMissing,
    InputOutputError,
    Interrupted,
    RlhfkitError,
    UsageError,
)
from rlhfkit.ui.terminal import safe

INTERNAL = 70
CLOSED_PIPE = 141
ERRORS_SHOWN = 10
_MISSING = {errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class ClosedPipe(Exception):
    """Whoever read our standard output has gone: no failure, but nothing left to do."""


class Stopped(BaseException):
    """A signal ends the command here and now; raised by the handler, so that clean-up runs."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def report(error: BaseException, command: str | None, *, debug: bool, rank: int = 0) -> int:
    """Say what went wrong on standard error and return the exit status."""
    if isinstance(error, ClosedPipe):
        return CLOSED_PIPE
    if isinstance(error, Stopped | KeyboardInterrupt):
        return 128 + getattr(error, "signum", 2)
    failure = _as_failure(error)
    program = f"rlhfkit {command}" if command else "rlhfkit"
    # Every process of a distributed run meets a wrong flag; one of them saying so is enough.
    if rank == 0 or not isinstance(failure, UsageError):
        prefix = f"[rank {rank}] " if rank else ""
        if debug:
            _print("".join(traceback.format_exception(error)).rstrip("\n"))
        for line in _lines(failure, program):
            _print(prefix + safe(line))
    return failure.exit_code


def _as_failure(error: BaseException) -> RlhfkitError:
    if isinstance(error, RlhfkitError):
        return error
    if is_out_of_memory(error):
        return RlhfkitError(
            "out of memory",
            hint="lower --micro-batch-size, --batch-tokens or --max-seq-len, as far as offered",
        )
    if isinstance(error, OSError):
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        kind = InputMissing if error.errno in _MISSING else InputOutputError
        return kind((error.strerror or str(error)).lower(), where=where)
    return _Internal(error)


class _Internal(RlhfkitError):
    exit_code = INTERNAL

    def __init__(self, error: BaseException) -> None:
        at = traceback.extract_tb(error.__traceback__)
        place = f" ({os.path.basename(at[-1].filename)}:{at[-1].lineno})" if at else ""
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        super().__init__(
            f"internal error: {text}{place}",
            hint="this is a bug in rlhfkit; please report it with what --debug adds",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the host or of a device ran out."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _lines(failure: RlhfkitError, program: str) -> Iterator[str]:
    if isinstance(failure, BadRecords):
        yield from _record_lines(failure, program)
        return
    yield _headline(failure, program)
    yield from (f"  {note}" for note in getattr(failure, "__notes__", ()))
    if failure.hint:
        yield f"hint: {failure.hint}"


def _record_lines(failure: BadRecords, program: str) -> Iterator[str]:
    shown: list[DataError] = failure.errors[:ERRORS_SHOWN]
    for error in shown:
        yield _headline(error, program)
    more = failure.more + len(failure.errors) - len(shown)
    if more:
        yield f"and {more} more"
    for hint in dict.fromkeys(error.hint for error in (*shown, failure) if error.hint):
        yield f"hint: {hint}"


def _headline(failure: RlhfkitError, program: str) -> str:
    """`demos.jsonl:17: error: ...` for a place in a file, `rlhfkit sft: error: --lr: ...` for a setting."""
    where = failure.where
    if isinstance(failure, Interrupted):
        return f"{program}: {failure.message}"
    if where is None:
        return f"{program}: error: {failure.message}"
    if where.startswith(("-", "RLHFKIT_")):
        return f"{program}: error: {where}: {failure.message}"
    return f"{where}: error: {failure.message}"


def _print(text: str) -> None:
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):  # if it fails, the exit status is all that is left to tell
        print(text, file=sys.stderr, flush=True)
