"""Sequences with a common beginning as trunk and branches, and how they lie in rows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhfkit.data.batching import fill_rows, micro_batches
from rlhfkit.data.trees import Tree, plant, tree_of

CPU = torch.device("cpu")
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5)


@given(sequences)
def test_trunk_and_branches_are_the_sequences_and_the_trunk_could_not_be_longer(ids: list[list[int]]) -> None:
    tree = tree_of(ids)
    assert [[*tree.trunk, *branch] for branch in tree.branches] == ids
    assert all(tree.branches)
    nexts = {branch[0] for branch in tree.branches}
    assert len(nexts) > 1 or any(len(branch) == 1 for branch in tree.branches)


def test_two_trees_in_one_row_by_hand() -> None:
    trees = [Tree([7, 8], [[1, 2], [3]]), Tree([9], [[4]]), Tree([5], [[6, 6], [6]])]
    forest = plant(trees, 0, CPU, filled=True)
    assert forest.input_ids.tolist() == [[7, 8, 1, 2, 3], [9, 4, 0, 0, 0], [5, 6, 6, 6, 0]]
    assert forest.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0], [0, 1, 2, 1, 0]]
    assert forest.segment_ids.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert forest.branch_ids.tolist() == [[0, 0, 1, 1, 2], [0, 1, 0, 0, 0], [0, 1, 1, 2, 0]]
    assert forest.ends.tolist() == [[0, 3], [0, 4], [1, 1], [2, 2], [2, 3]]
    narrow = plant([Tree([7, 8, 9], [[1], [2]]), Tree([9], [[4]]), Tree([5], [[6]])], 0, CPU, filled=True)
    assert narrow.segment_ids.tolist() == [[1, 1, 1, 1, 1], [1, 1, 2, 2, 0]]
    assert narrow.ends.tolist() == [[0, 3], [0, 4], [1, 1], [1, 3]]


def test_single_sequences_are_padded_as_ever() -> None:
    forest = plant([Tree([], [[1, 2, 3]]), Tree([], [[4, 5]])], 0, CPU, filled=False)
    assert forest.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert forest.segment_ids is None
    assert forest.ends.tolist() == [[0, 2], [1, 1]]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=40), st.integers(50, 5000))
def test_filled_micro_batches_hold_each_once_and_within_the_budget(lengths: list[int], tokens: int) -> None:
    groups = micro_batches(lengths, rows=None, tokens=tokens, filled=True)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= tokens
        rows = fill_rows([lengths[i] for i in group])
        if rows is not None:
            width = max(lengths[i] for i in group)
            assert width <= 512
            assert sorted(i for row in rows for i in row) == list(range(len(group)))
            assert all(sum(lengths[group[i]] for i in row) <= width for row in rows)
