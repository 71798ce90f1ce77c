"""Tiers and the simulated labeller."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhfkit.evaluation.ranking import first_equals, perturbed, tiers_of


def test_tiers_by_hand():
    assert tiers_of([1.0, 3.0, 2.0, 3.0]) == [[1, 3], [2], [0]]
    assert tiers_of([0.0, -0.0]) == [[0, 1]]
    assert tiers_of([]) == []


def test_margin_counts_from_the_best_of_a_tier():
    assert tiers_of([1.0, 0.95, 0.9, 0.5], margin=0.1) == [[0, 1, 2], [3]]
    assert tiers_of([1.0, 0.95, 0.89], margin=0.1) == [[0, 1], [2]]  # not a chain


@given(st.lists(st.integers(-3, 3), max_size=9), st.integers(0, 2))
def test_tiers_are_a_partition_in_order(scores, margin):
    tiers = tiers_of(scores, margin)
    assert sorted(i for tier in tiers for i in tier) == list(range(len(scores)))
    assert all(scores[i] > scores[j] for one, two in pairwise(tiers) for i in one[:1] for j in two)
    assert all(max(scores[i] for i in t) - min(scores[i] for i in t) <= margin for t in tiers)


def test_first_equals():
    assert first_equals(["a", "b", "a", "c", "b"]) == [0, 1, 0, 3, 1]


def draw(scores, tau, count):
    texts = [str(i) for i in range(len(scores))]
    return [tuple(t[0] for t in tiers_of(perturbed(scores, tau, 0, f"p{n}", texts))) for n in range(count)]


def test_noise_is_plackett_luce():
    scores, tau, count = [0.0, 0.5, 1.5], 0.7, 20_000
    seen = draw(scores, tau, count)
    for order in permutations(range(3)):
        weights = [math.exp(scores[i] / tau) for i in order]
        chance = math.prod(weights[k] / sum(weights[k:]) for k in range(3))
        share = seen.count(order) / count
        assert share == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / count))


def test_noise_has_the_moments_of_a_gumbel():
    noise = np.array([perturbed([0.0], 1.0, seed, "p", ["t"])[0] for seed in range(20_000)])
    assert noise.mean() == pytest.approx(0.5772, abs=0.03)
    assert noise.std() == pytest.approx(math.pi / math.sqrt(6), abs=0.03)


def test_noise_depends_on_seed_prompt_place_and_text():
    base = perturbed([0.0, 0.0], 1.0, 1, "p", ["t", "t"])
    assert base == perturbed([0.0, 0.0], 1.0, 1, "p", ["t", "t"])
    assert base[0] != base[1]
    assert base != perturbed([0.0, 0.0], 1.0, 2, "p", ["t", "t"])
    assert base != perturbed([0.0, 0.0], 1.0, 1, "q", ["t", "t"])
    assert base != perturbed([0.0, 0.0], 1.0, 1, "p", ["u", "t"])
    assert perturbed([3.0], 0.0, 1, "p", ["t"]) == [3.0]
    assert all(map(math.isfinite, perturbed([0.0], 1.0, 0, "\ud800", ["\udc00"])))
