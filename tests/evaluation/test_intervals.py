"""Standard errors, intervals and tests against scipy, closed forms and simulation."""

import numpy as np
import pytest
from scipy import stats

from rlhfkit.evaluation.intervals import PromptMeans, t_test


def means_of(values, prompts):
    return PromptMeans.of(np.asarray(values, dtype=float), np.asarray(prompts))


def test_one_judgement_a_prompt_is_the_plain_mean_and_sem():
    values = np.random.default_rng(0).random(100)
    means = means_of(values, np.random.default_rng(1).permutation(100))
    assert means.mean == pytest.approx(values.mean(), abs=1e-15)
    assert means.standard_error == pytest.approx(stats.sem(values), rel=1e-12)


def test_duplicating_every_judgement_of_a_prompt_changes_nothing():
    values = np.random.default_rng(0).integers(0, 3, 50) / 2
    once = means_of(values, np.arange(50))
    thrice = means_of(np.repeat(values, 3), np.repeat(np.arange(50), 3))
    assert thrice.mean == pytest.approx(once.mean)
    assert thrice.standard_error == pytest.approx(once.standard_error)


def test_clustered_error_by_hand():
    # prompt 0: 1, 1, 0; prompt 1: 0. mean 1/2; residual sums 2 - 3/2 = 1/2 and 0 - 1/2
    means = means_of([1, 1, 0, 0], [0, 0, 0, 1])
    assert means.mean == 0.5
    assert means.standard_error == pytest.approx(np.sqrt(2 / 1 * (0.25 + 0.25)) / 4)


def test_interval_without_spread_is_wilsons():
    low, high = means_of(np.ones(40), np.arange(40)).interval(1000, np.random.default_rng(0))
    wilson = stats.binomtest(40, 40).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)
    assert 0 < low < 1
    assert high == pytest.approx(1)


def test_without_draws_the_interval_is_wilsons_at_the_effective_size():
    values = np.array([1.0] * 30 + [0.0] * 70)
    low, high = means_of(values, np.arange(100)).interval(0, np.random.default_rng(0))
    wilson = stats.binomtest(30, 99).proportion_ci(method="wilson")  # ddof = 1 makes it 99
    assert low == pytest.approx(wilson.low, abs=0.005)
    assert high == pytest.approx(wilson.high, abs=0.005)


def test_interval_agrees_with_scipys_bca():
    values = np.random.default_rng(3).beta(2, 1, 60)
    ours = means_of(values, np.arange(60)).interval(20_000, np.random.default_rng(0))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_resampling_in_chunks_draws_every_time(monkeypatch):
    monkeypatch.setattr("rlhfkit.evaluation.intervals._CHUNK", 64)
    values = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    means = means_of(values, np.arange(50))._resample(999, np.random.default_rng(0))
    assert means.shape == (999,)
    assert means.std() == pytest.approx(values.std() / np.sqrt(50), rel=0.1)


def test_uneven_prompts_resample_as_a_ratio():
    values, prompts = np.array([1.0, 1, 1, 0, 0]), np.array([0, 0, 0, 1, 2])
    means = means_of(values, prompts)._resample(4000, np.random.default_rng(0))
    assert set(np.unique(means.round(6))) <= {0.0, 0.6, round(6 / 7, 6), 1.0}


def test_nothing_and_one_prompt():
    empty = means_of([], [])
    assert np.isnan(empty.mean)
    assert np.isnan(empty.standard_error)
    assert all(np.isnan(empty.interval(100, np.random.default_rng(0))))
    low, high = means_of([1, 0], [7, 7]).interval(100, np.random.default_rng(0))
    assert 0 <= low < 0.5 < high <= 1


@pytest.mark.parametrize(
    ("mean", "error", "n"), [(0.1, 0.05, 5), (-0.3, 0.1, 30), (0.01, 0.02, 1000), (2, 0.1, 9)]
)
def test_t_test_against_scipy(mean, error, n):
    assert t_test(mean, error, n) == pytest.approx(2 * stats.t.sf(abs(mean / error), n - 1), rel=1e-9)


def test_t_test_without_spread():
    assert t_test(0.0, 0.0, 10) == 1.0
    assert t_test(0.5, 0.0, 10) == 0.0
    assert np.isnan(t_test(0.5, 0.1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [50, 200, 800])
@pytest.mark.parametrize("truth", [0.3, 0.5, 0.62, 0.85])
@pytest.mark.parametrize("each", [1, 4])
def test_interval_covers_the_truth(prompts, truth, each):
    """I44: 93 to 97% of 1,000 simulated evaluations, ties included, with 1 and 4 judgements a prompt."""
    rng = np.random.default_rng([prompts, each, int(100 * truth)])
    covered = 0
    for _ in range(1000):
        quality = rng.beta(3 * truth, 3 * (1 - truth), size=(prompts, 1))  # some prompts suit a model better
        votes = rng.random((prompts, each)) < quality
        tied = rng.random((prompts, each)) < 0.1
        values = np.where(tied, 0.5, votes)
        target = 0.1 * 0.5 + 0.9 * truth
        means = means_of(values.ravel(), np.repeat(np.arange(prompts), each))
        low, high = means.interval(1000, rng)
        covered += low <= target <= high
    assert 930 <= covered <= 970
