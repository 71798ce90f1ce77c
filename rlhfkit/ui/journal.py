"""An append-only file of JSON lines that several processes share, and that no crash can shorten.

Every write happens under a lock, goes to the end in one piece and is on the disk when `append` returns.
Nothing is ever rewritten: a line that a crash tore is closed with a line end and passed over from then on.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhfkit.errors import CannotCreate, DataError, InputOutputError
from rlhfkit.files import fsync_directory

Line = dict[str, Any]


class Journal:
    """`entries` as they stood at the last look. Use `locked()` to look, decide and append as one step."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or create. Raises CannotCreate (73), DataError (65) for a file that is something else."""
        self.path = Path(path)
        self.entries: list[Line] = []
        self.torn = 0  # lines that are no JSON objects
        self._offset = 0
        self._mutex = threading.RLock()
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CannotCreate(f"cannot open: {_reason(error)}", where=str(path)) from error
        fsync_directory(self.path.parent)
        with self.locked(), self._io_errors():
            if any(not _ours(entry) for entry in self.entries) or (self.torn and not self.entries):
                raise DataError("is no journal of decisions", where=str(path), hint="--journal names another")
            self._close_torn_line()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the journal against threads and processes; `entries` are up to date inside."""
        with self._mutex:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                self._look()
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line; it is on the disk afterwards. Only inside `locked()`. Raises InputOutputError (74)."""
        data = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._io_errors():
            self._close_torn_line()
            while data:
                data = data[os.write(self._descriptor, data) :]
        self.flush()
        self._look()

    def flush(self) -> None:
        """Have everything on the disk. Raises InputOutputError (74)."""
        with self._io_errors():
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    @contextmanager
    def _io_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputOutputError(f"cannot write: {_reason(error)}", where=str(self.path)) from error

    def _close_torn_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")
            self._look()

    def _look(self) -> None:
        """Take in the whole lines that were added since the last look."""
        pieces = []
        at = self._offset
        while piece := os.pread(self._descriptor, 1 << 20, at):
            pieces.append(piece)
            at += len(piece)
        whole, end, _ = b"".join(pieces).rpartition(b"\n")
        if not end:
            return
        self._offset += len(whole) + 1
        for raw in whole.split(b"\n"):
            try:
                entry = json.loads(raw)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                self.entries.append(entry)
            elif raw.strip():
                self.torn += 1


_DECISION = {"decision", "supersedes", "item", "rater", "time", "seconds", "shown_order", "ranking"}
_DECISION |= {"flags", "ratings", "note"}
_CLAIM = {"claim", "rater", "until"}


def _ours(entry: Line) -> bool:
    """Whether `ranking_session` can have written a line: a file of other data is left alone."""
    return entry.keys() >= _DECISION or entry.keys() >= _CLAIM


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
