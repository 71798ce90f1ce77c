"""`metrics.jsonl` and its like: one JSON object a line, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path


def finite(record: Mapping[str, object]) -> dict[str, object]:
    """The record with null for figures that are not defined: JSON has no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


class Log:
    """An append-only JSONL file whose length is part of a checkpoint.

    A run that is killed may have logged steps after its last checkpoint; resuming cuts the file back to
    the length that the checkpoint knew, so that no step stands in it twice.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 (lives as long as the run)
        size = os.fstat(self._file.fileno()).st_size
        if size > length:
            self._file.truncate(length)
            self._file.seek(0, os.SEEK_END)

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record."""
        self._file.write(json.dumps(finite(record), ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes written so far, safely on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
