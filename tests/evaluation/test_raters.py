"""Agreement measures against scipy, a published example and hand counts."""

import numpy as np
import pytest
from scipy import stats

from rlhfkit.evaluation.agreement import (
    Rating,
    kendall_tau_b,
    krippendorff_alpha,
    mean_ranks,
    summarise_agreement,
)


def rating(rater, item, **ranks):
    return Rating(rater, item, ranks)


def summary(ratings):
    return summarise_agreement(ratings, draws=200, seed=0)


def test_mean_ranks():
    assert mean_ranks([[2], [0, 3], [1]], "abcd") == {"c": 1, "a": 2.5, "d": 2.5, "b": 4}


def test_krippendorffs_own_example():
    """Four observers, twelve units, missing values; alpha for ordinal data is 0.815."""
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[v for v in unit if v is not None] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.815, abs=5e-4)


def test_alpha_extremes():
    assert krippendorff_alpha([[1, 1], [2, 2], [3, 3]]) == 1
    assert krippendorff_alpha([[1, 2], [2, 1]]) < 0
    assert krippendorff_alpha([[1], [2]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    rng = np.random.default_rng(0)
    assert krippendorff_alpha(rng.integers(1, 6, (4000, 2)).tolist()) == pytest.approx(0, abs=0.05)


def test_tau_b_against_scipy():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.integers(0, 4, 7).tolist(), rng.integers(0, 4, 7).tolist()
        ours = kendall_tau_b(dict(enumerate(x)), dict(enumerate(y)))
        assert ours == pytest.approx(stats.kendalltau(x, y).statistic)
    assert kendall_tau_b({"a": 1, "b": 1}, {"a": 1, "b": 2}) is None


def test_pairwise_agreement_by_hand():
    found = summary(
        [
            rating("ann", 1, x=1, y=2, z=3),
            rating("ben", 1, x=1, y=3, z=2),  # agrees on xy, xz, not on yz
            rating("ann", 2, x=1, y=2),
            rating("ben", 2, x=1.5, y=1.5),  # a tie: no order to agree with
            rating("ann", 3, x=1, y=2),  # ben never saw it
        ]
    )
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["items"], pair["comparisons"]) == ("ann", "ben", 2, 3)
    assert pair["agreement"] == pytest.approx(2 / 3)
    assert pair["agreement_ties_half"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert pair["tau_b"] == pytest.approx(1 / 3)
    assert pair["ci_low"] <= pair["agreement"] <= pair["ci_high"]
    assert found["overall"]["agreement"] == pair["agreement"]


def test_completions_are_matched_by_text_not_by_place():
    found = summary([rating("a", 1, x=1, y=2), rating("b", 1, y=2, x=1, only_here=3)])
    assert found["pairs"][0]["agreement"] == 1


def test_repeats_are_self_agreement_and_the_last_one_counts():
    found = summary(
        [
            Rating("a", 1, {"x": 1, "y": 2}, 10.0),
            Rating("a", 1, {"x": 2, "y": 1}, 4.0),
            rating("b", 1, x=2, y=1),
        ]
    )
    assert found["raters"]["a"] == {"items": 1, "median_seconds": 7.0, "self": found["raters"]["a"]["self"]}
    assert found["raters"]["a"]["self"]["agreement"] == 0
    assert found["raters"]["b"]["self"] is None
    assert found["pairs"][0]["agreement"] == 1


def test_three_raters():
    found = summary([rating(r, i, x=1, y=2) for r in "abc" for i in range(5)])
    assert [(p["a"], p["b"]) for p in found["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["overall"]["alpha"] == 1
    assert found["overall"]["items"] == 5
    assert found["overall"]["comparisons"] == 15


def test_nothing_in_common():
    found = summary([rating("a", 1, x=1, y=2), rating("b", 2, x=1, y=2)])
    assert found["pairs"] == []
    assert found["overall"]["agreement"] is None
    assert found["overall"]["alpha"] is None
