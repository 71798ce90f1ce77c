"""From token sequences to tensors: order of the data, micro-batches without much padding, packing.

Everything is a pure function of (seed, position), so that a resumed run, or one spread over several
processes, sees the same data in the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rlhfkit.errors import DataError

#: Tokens (padding included) of one forward pass when --micro-batch-size does not say otherwise.
#: Measured on CPU: steps of up to 4,096 tokens are faster than larger ones and need half the memory.
TOKEN_BUDGET = {"cpu": 4096, "cuda": 32768}
#: Sequences share rows only up to this width: attention's cost grows with it.
FILL_WIDTH = 512


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence. `mask[i]` says whether predicting `ids[i]` counts in the loss (never for i = 0)."""

    ids: Sequence[int]
    mask: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. A packed row holds several sequences, told apart by `segment_ids`."""

    input_ids: Tensor  # (B, S) int64
    attention_mask: Tensor  # (B, S) bool, True on real tokens
    loss_mask: Tensor  # (B, S - 1) bool, target-aligned
    position_ids: Tensor | None = None  # (B, S)
    segment_ids: Tensor | None = None  # (B, S), 0 on padding


class Order:
    """An endless, seeded order over `count` items: every epoch visits each once, in its own shuffle."""

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise DataError("there are no records to train on")
        self.count = count
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(count)
        )

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        return int(self._permutation(epoch)[offset])


def plan_steps(count: int, batch_size: int, *, epochs: float, steps: int | None) -> tuple[int, int]:
    """(optimizer steps, items to visit). The last batch of an epoch count may be smaller."""
    if steps is not None:
        return steps, steps * batch_size
    items = max(1, round(epochs * count))
    return -(-items // batch_size), items


def step_items(order: Order, step: int, batch_size: int, items: int) -> list[int]:
    """The items of the global batch of one step."""
    return [order[p] for p in range(step * batch_size, min((step + 1) * batch_size, items))]


def micro_batches(
    lengths: Sequence[int], *, rows: int | None, tokens: int, filled: bool = False
) -> list[list[int]]:
    """Cut a batch into micro-batches of similar lengths.

    Longest first; each holds at most `rows` sequences if given, else as many as fit `tokens` (always at least
    one): when padded to its longest, or as they are if they will share rows (`filled`, see `fill_rows`).
    How a batch is cut cannot change its loss.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for index in order:
        full = True
        if groups:
            group = groups[-1]
            longest = lengths[group[0]]
            if rows is not None:
                full = len(group) >= rows
            elif filled and longest <= FILL_WIDTH:
                full = sum(lengths[i] for i in group) + lengths[index] > tokens
            else:
                full = len(group) >= max(1, tokens // max(1, longest))
        if full:
            groups.append([])
        groups[-1].append(index)
    return groups


def fill_rows(lengths: Sequence[int]) -> list[list[int]] | None:
    """How sequences may share rows that are as wide as the longest; None where that saves no row."""
    longest = max(lengths)
    if longest > FILL_WIDTH:
        return None
    rows = pack_rows(lengths, longest)
    return rows if len(rows) < len(lengths) else None


def collate(examples: Sequence[Example], pad_id: int, device: torch.device) -> Batch:
    """Right-pad sequences to the longest."""
    width = max(2, max(len(e.ids) for e in examples))
    ids = np.full((len(examples), width), pad_id, dtype=np.int64)
    real = np.zeros((len(examples), width), dtype=bool)
    counts = np.zeros((len(examples), width), dtype=bool)
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n], real[row, :n], counts[row, :n] = example.ids, True, example.mask
    return Batch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(real).to(device),
        torch.from_numpy(counts[:, 1:].copy()).to(device),
    )


def pack_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """First-fit decreasing: put sequences into rows of at most `width` tokens."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, free in enumerate(room):
            if lengths[index] <= free:
                rows[row].append(index)
                room[row] -= lengths[index]
                break
        else:
            rows.append([index])
            room.append(width - lengths[index])
    return rows


def collate_packed(rows: Sequence[Sequence[Example]], pad_id: int, device: torch.device) -> Batch:
    """Join the sequences of each row; positions restart and attention stays within a sequence."""
    width = max(2, max(sum(len(e.ids) for e in row) for row in rows))
    shape = (len(rows), width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    counts = np.zeros(shape, dtype=bool)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.zeros(shape, dtype=np.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row, 1):
            end = start + len(example.ids)
            ids[r, start:end] = example.ids
            # The first token of a sequence must not be predicted from the sequence before it.
            counts[r, start + 1 : end] = example.mask[1:]
            positions[r, start:end] = np.arange(end - start)
            segments[r, start:end] = number
            start = end
    return Batch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(segments > 0).to(device),
        torch.from_numpy(counts[:, 1:].copy()).to(device),
        torch.from_numpy(positions).to(device),
        torch.from_numpy(segments).to(device),
    )


def batches_of(
    examples: Sequence[Example],
    *,
    rows: int | None,
    tokens: int,
    pad_id: int,
    device: torch.device,
    packed: int = 0,
    filled: bool = False,
) -> list[Callable[[], Batch]]:
    """The micro-batches of a batch of sequences, each built when it is called.

    `packed` > 0 joins sequences into rows of that many tokens. Otherwise rows are padded, or, with `filled`
    and without a number of rows, shared by sequences where that makes fewer of them.
    """

    def joined_or_padded(group: list[Example], filled: bool) -> Batch:
        rows = fill_rows([len(e.ids) for e in group]) if filled else None
        if rows is None:
            return collate(group, pad_id, device)
        return collate_packed([[group[i] for i in row] for row in rows], pad_id, device)

    if packed:
        joined = pack_rows([len(e.ids) for e in examples], packed)
        height = rows if rows is not None else max(1, tokens // packed)
        chunks = [joined[i : i + height] for i in range(0, len(joined), height)]
        return [
            lambda chunk=chunk: collate_packed([[examples[i] for i in row] for row in chunk], pad_id, device)  # type: ignore[misc]
            for chunk in chunks
        ]
    filled = filled and rows is None
    groups = micro_batches([len(e.ids) for e in examples], rows=rows, tokens=tokens, filled=filled)
    return [lambda group=group: joined_or_padded([examples[i] for i in group], filled) for group in groups]  # type: ignore[misc]
