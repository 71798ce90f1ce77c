"""Pretraining batches: fixed-length windows of the token stream of memory-mapped shards.

A window runs across document ends (each marked by the end-of-text token) and attention does not stop
there, as in nanoGPT. The windows of an epoch lie end to end, shifted by a random offset per shard and
epoch, so that a token is not always seen at the same place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from rlhfkit.data.batching import Batch, Order
from rlhfkit.data.shards import Shard, open_shard
from rlhfkit.errors import DataError, InputMissing
from rlhfkit.files import sha256_file


def open_shards(paths: Iterable[str | os.PathLike[str]], tokenizer_digest: str) -> list[Shard]:
    """Open shards, and directories of them, all of which this tokenizer must have made (DataError if not)."""
    files = _shard_files(paths)
    shards = [open_shard(path) for path in files]
    for path, shard in zip(files, shards, strict=True):
        if shard.tokenizer_digest != tokenizer_digest:
            raise DataError(
                "made with another tokenizer", where=str(path), hint="run `rlhfkit tokenize` again"
            )
    return shards


def shard_digests(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The SHA-256 of every shard, in order."""
    return [sha256_file(path) for path in _shard_files(paths)]


def _shard_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not found:
            raise InputMissing(
                "holds no token shards", where=str(path), hint="make some with `rlhfkit tokenize`"
            )
        files.extend(found)
    return files


class Windows:
    """All windows of `context` + 1 tokens (inputs and their shifted targets) of some shards."""

    def __init__(self, shards: Sequence[Shard], context: int, *, shuffle: bool = True) -> None:
        self.context = context
        self.shuffle = shuffle
        self._shards = [s for s in shards if len(s.tokens) > context]
        if not self._shards:
            longest = max((len(s.tokens) for s in shards), default=0)
            raise DataError(
                f"too few tokens for one window: {context + 1} needed, {longest} found",
                hint="give more text or a smaller --context",
            )
        # With a shift the last window may not fit, so one fewer is used (but at least one).
        counts = [(len(s.tokens) - 1) // context for s in self._shards]
        self._counts = [max(1, n - 1) if shuffle else n for n in counts]
        self._starts = np.cumsum([0, *self._counts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def window(self, index: int, shift_seed: Sequence[int]) -> np.ndarray:
        """Window `index`, (context + 1,) ids; `shift_seed` picks the epoch's offset."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        tokens = self._shards[shard].tokens
        start = int(index - self._starts[shard]) * self.context
        if self.shuffle:
            room = len(tokens) - 1 - self._counts[shard] * self.context
            start += int(
                np.random.default_rng([*shift_seed, shard]).integers(0, min(room, self.context - 1) + 1)
            )
        return np.asarray(tokens[start : start + self.context + 1], dtype=np.int64)


def window_batch(rows: Sequence[np.ndarray], device: torch.device) -> Batch:
    """Windows as a batch without padding, every target counting."""
    ids = torch.from_numpy(np.stack(rows)).to(device)
    real = torch.ones_like(ids, dtype=torch.bool)
    return Batch(ids, real, real[:, 1:])


class WindowOrder:
    """Windows in a seeded, endless order: position -> window."""

    def __init__(self, windows: Windows, seed: int) -> None:
        self.windows = windows
        self.seed = seed
        self._order = Order(len(windows), seed)

    def __getitem__(self, position: int) -> np.ndarray:
        return self.windows.window(self._order[position], [self.seed, position // len(self.windows)])


def window_batches(
    order: WindowOrder, positions: Sequence[int], rows: int, device: torch.device
) -> list[Callable[[], Batch]]:
    """The windows at these positions in micro-batches of `rows`, each built when it is called."""
    parts = [positions[i : i + rows] for i in range(0, len(positions), rows)]
    return [lambda part=part: window_batch([order[p] for p in part], device) for part in parts]  # type: ignore[misc]
