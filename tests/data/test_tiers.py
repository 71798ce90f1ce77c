"""Rankings as tiers and the pairs they make."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhfkit.data.tiers import agree, count_untied_pairs, grouped, told_apart, untied_pairs

keys = st.lists(st.integers(0, 4), min_size=2, max_size=8)


@given(keys)
def test_pairs_are_those_of_different_keys_with_the_better_first(values: list[int]):
    tiers = grouped(dict(enumerate(values)), best_first=-1)
    pairs = untied_pairs(tiers)
    expected = {
        (a, b) if values[a] > values[b] else (b, a)
        for a, b in combinations(range(len(values)), 2)
        if values[a] != values[b]
    }
    assert set(pairs) == expected
    assert len(pairs) == len(expected) == count_untied_pairs(tiers)
    ranks = [values[a] for a, _ in pairs]
    assert ranks == sorted(ranks, reverse=True)


@given(keys)
def test_fewer_pairs(values: list[int]):
    tiers = grouped(dict(enumerate(values)), best_first=1)
    levels = sorted(set(values))
    place = {value: levels.index(value) for value in values}
    every = set(untied_pairs(tiers))
    assert set(untied_pairs(tiers, "adjacent")) == {
        (a, b) for a, b in every if place[values[b]] - place[values[a]] == 1
    }
    assert set(untied_pairs(tiers, "best-worst")) == {
        (a, b) for a, b in every if (values[a], values[b]) == (levels[0], levels[-1])
    }


@pytest.mark.parametrize("which", ["all", "adjacent", "best-worst"])
def test_no_pairs(which: str):
    for tiers in ([], [[0]], [[0, 1, 2]]):
        assert untied_pairs(tiers, which) == []  # type: ignore[arg-type]


@given(keys, keys)
def test_agreement_is_that_of_every_shared_pair(a: list[int], b: list[int]):
    first, second = grouped(dict(enumerate(a)), best_first=1), grouped(dict(enumerate(b)), best_first=1)

    def order(values: list[int], i: int, j: int) -> int:
        return (values[i] > values[j]) - (values[i] < values[j])

    shared = range(min(len(a), len(b)))
    assert agree(first, second) == all(order(a, i, j) == order(b, i, j) for i, j in combinations(shared, 2))


def test_equal_texts_are_told_apart_by_content_not_by_length():
    texts = [b'"ab"', b'"cd"', b'"ab"', b'"abc"']
    pairs = [(0, 1), (0, 2), (1, 2), (2, 0), (0, 3)]
    assert told_apart(pairs, texts) == ([(0, 1), (1, 2), (0, 3)], 2)
    assert told_apart([(0, 1)], [texts[0], texts[3]]) == ([(0, 1)], 0)
