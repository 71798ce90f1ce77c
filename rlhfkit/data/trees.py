"""Sequences that begin alike, laid out so that their common beginning is computed once.

The completions of one prompt are branches on its trunk. In a row of tokens the trunk comes first and the
branches follow one after the other; each sees the trunk and itself, and its positions go on from the trunk's
end. Scores and gradients are those of the sequences one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhfkit.data.batching import fill_rows


@dataclass(frozen=True, slots=True)
class Tree:
    """Sequences as their common beginning and what follows it in each."""

    trunk: Sequence[int]
    branches: Sequence[Sequence[int]]

    @property
    def size(self) -> int:
        """Tokens to compute."""
        return len(self.trunk) + sum(map(len, self.branches))


def tree_of(sequences: Sequence[Sequence[int]]) -> Tree:
    """The tree of some sequences; every branch keeps at least one token."""
    shortest = min(map(len, sequences)) - 1
    first = sequences[0]
    common = next((i for i in range(shortest) if any(s[i] != first[i] for s in sequences)), shortest)
    return Tree(first[:common], [s[common:] for s in sequences])


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees in right-padded rows, and where each sequence ends."""

    input_ids: Tensor  # (B, S) int64
    attention_mask: Tensor  # (B, S) bool, True on real tokens
    ends: Tensor  # (N, 2) row and column of the last token of every sequence, in order
    position_ids: Tensor | None = None  # (B, S)
    segment_ids: Tensor | None = None  # (B, S), 0 on padding, else the tree's number in its row
    branch_ids: Tensor | None = None  # (B, S), 0 on trunks, else the branch's number


def plant(trees: Sequence[Tree], pad_id: int, device: torch.device, *, filled: bool) -> Forest:
    """Lay trees out; several share a row where that makes fewer rows and `filled` allows it."""
    sizes = [tree.size for tree in trees]
    rows = (fill_rows(sizes) if filled else None) or [[i] for i in range(len(trees))]
    width = max(sum(sizes[i] for i in row) for row in rows)
    shape = (len(rows), width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    positions, segments, branches = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    ends: dict[int, list[tuple[int, int]]] = {}
    for r, row in enumerate(rows):
        start = 0
        for number, index in enumerate(row, 1):
            trunk = len(trees[index].trunk)
            ends[index] = []
            for branch, part in enumerate([trees[index].trunk, *trees[index].branches]):
                end = start + len(part)
                ids[r, start:end], segments[r, start:end], branches[r, start:end] = part, number, branch
                first = trunk if branch else 0
                positions[r, start:end] = np.arange(first, first + len(part))
                if branch:
                    ends[index].append((r, end - 1))
                start = end
    input_ids = torch.from_numpy(ids).to(device)
    real = torch.from_numpy(segments > 0).to(device)
    where = torch.tensor([end for i in range(len(trees)) for end in ends[i]], device=device)
    if all(len(row) == 1 for row in rows) and all(len(tree.branches) == 1 for tree in trees):
        return Forest(input_ids, real, where)  # rows of one sequence need no further mask
    further = (torch.from_numpy(x).to(device) for x in (positions, segments, branches))
    return Forest(input_ids, real, where, *further)
