"""The verdicts of a judge on disk, so that nothing is asked and paid for twice."""

from __future__ import annotations

import fcntl
import json
from typing import BinaryIO

from rlhfkit.errors import CannotCreate, DataError, InputOutputError, Locked
from rlhfkit.scorers.judging import VERDICTS


class VerdictCache:
    """Verdicts by question, in a JSONL file that only grows; a torn last line is dropped.

    Raises Locked when another run holds the file, DataError when it is not a cache.
    """

    def __init__(self, path: str | None) -> None:
        self._verdicts: dict[str, str] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        try:
            self._file = open(path, "a+b")  # noqa: SIM115 - held until close
        except OSError as error:
            raise CannotCreate(f"{path}: {error.strerror}", where="--judge-cache") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"{path}: another run is using this cache", where="--judge-cache") from None
        self._load(path, self._file)

    def _load(self, path: str, file: BinaryIO) -> None:
        file.seek(0)
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break  # written by a run that was killed
            try:
                entry = json.loads(line)
                key, verdict = entry["key"], entry["verdict"]
                if verdict not in VERDICTS:
                    raise ValueError(verdict)
                self._verdicts[key] = verdict
            except (ValueError, LookupError, TypeError):
                raise DataError("not a line of a judge cache", where=f"{path}:{number}") from None
            end += len(line)
        file.truncate(end)

    def get(self, key: str) -> str | None:
        """The verdict, None if it has not been given."""
        return self._verdicts.get(key)

    def add(self, key: str, verdict: str) -> None:
        """Remember a verdict, in the file at once."""
        self._verdicts[key] = verdict
        if self._file is not None:
            try:
                self._file.write(json.dumps({"key": key, "verdict": verdict}).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                raise InputOutputError(
                    f"{self._file.name}: {error.strerror}", where="--judge-cache"
                ) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
