"""Errors a user can meet. Each class carries the exit code that the command line returns for it.

Library code raises these; only `rlhfkit.cli` turns them into a line on standard error and an exit
status. A programming mistake of ours is an `assert`, never one of these.
"""

from __future__ import annotations


class RlhfkitError(Exception):
    """The run failed (exit 1). `where` is `file:line` or a flag; `hint` says how to mend it."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(RlhfkitError):
    """A flag, setting or combination of them is wrong (exit 2)."""

    exit_code = 2


class DataError(RlhfkitError):
    """An input exists and can be read, but what it holds is bad (exit 65)."""

    exit_code = 65


class BadRecords(DataError):
    """Several bad records, each already worded as a DataError."""

    def __init__(self, errors: list[DataError], more: int = 0) -> None:
        super().__init__(f"{len(errors) + more} bad records")
        self.errors = errors
        self.more = more


class InputMissing(RlhfkitError):
    """An input does not exist or cannot be opened (exit 66)."""

    exit_code = 66


class CannotCreate(RlhfkitError):
    """An output exists already or cannot be created (exit 73)."""

    exit_code = 73


class InputOutputError(RlhfkitError):
    """Reading or writing failed half-way: disk full, device gone (exit 74)."""

    exit_code = 74


class Locked(RlhfkitError):
    """Another run holds the output (exit 75)."""

    exit_code = 75


class Interrupted(RlhfkitError):
    """A signal asked the run to stop and it stopped cleanly (exit 128 + signal)."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum
