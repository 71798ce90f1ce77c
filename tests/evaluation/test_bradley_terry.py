"""Bradley-Terry against an independent fit (statsmodels), closed forms and invariances."""

import math

import numpy as np
import pytest
import statsmodels.api as sm

from rlhfkit.evaluation.bradley_terry import SCALE, fit_bradley_terry, sequential_elo


def table(seed, models=6, n=3000, ties=0.2, spread=1.0):
    rng = np.random.default_rng(seed)
    theta = rng.normal(0, spread, models)
    a = rng.integers(0, models, n)
    b = (a + rng.integers(1, models, n)) % models
    won = (rng.random(n) < 1 / (1 + np.exp(theta[b] - theta[a]))).astype(float)
    won[rng.random(n) < ties] = 0.5
    return theta - theta.mean(), a, b, won, np.arange(n)


def statsmodels_fit(a, b, won, models):
    x = np.zeros((len(a), models))
    x[np.arange(len(a)), a] += 1
    x[np.arange(len(b)), b] -= 1
    fit = sm.GLM(won, x[:, 1:], family=sm.families.Binomial()).fit(tol=1e-12)
    theta = np.concatenate([[0.0], fit.params])
    return theta - theta.mean()


@pytest.mark.parametrize("seed", range(4))
def test_equals_an_independent_maximum_likelihood_fit(seed):
    _, a, b, won, prompts = table(seed)
    fit = fit_bradley_terry(a, b, won, prompts, 6)
    assert fit.prior == 0
    assert fit.theta == pytest.approx(statsmodels_fit(a, b, won, 6), abs=1e-7)
    dropped = fit_bradley_terry(a, b, won, prompts, 6, ties="drop")
    untied = won != 0.5
    assert dropped.theta == pytest.approx(statsmodels_fit(a[untied], b[untied], won[untied], 6), abs=1e-7)


def test_shared_preferences_count_in_part():
    _, a, b, _, prompts = table(1)
    won = np.random.default_rng(9).random(len(a))
    assert fit_bradley_terry(a, b, won, prompts, 6).theta == pytest.approx(
        statsmodels_fit(a, b, won, 6), abs=1e-7
    )


def test_two_players_have_the_closed_form():
    """I46."""
    won = np.array([1.0] * 70 + [0.0] * 20 + [0.5] * 10)
    zero = np.zeros(100, dtype=int)
    fit = fit_bradley_terry(zero, zero + 1, won, np.arange(100), 2)
    assert fit.rating(0)[0] - fit.rating(1)[0] == pytest.approx(400 * math.log10(0.75 / 0.25), abs=1e-9)
    assert fit.theta.sum() == pytest.approx(0, abs=1e-12)
    # delta method: the error of the log-odds of a proportion, halved by centring
    error = won.std(ddof=1) / 10 / (0.75 * 0.25) / 2
    assert fit.standard_error == pytest.approx([error, error], rel=1e-9)


def test_reversing_labels_negates_and_swapping_sides_changes_nothing():
    _, a, b, won, prompts = table(2)
    fit = fit_bradley_terry(a, b, won, prompts, 6)
    assert fit_bradley_terry(a, b, 1 - won, prompts, 6).theta == pytest.approx(-fit.theta, abs=1e-9)
    swapped = fit_bradley_terry(b, a, 1 - won, prompts, 6)
    assert swapped.theta == pytest.approx(fit.theta, abs=1e-9)
    assert swapped.standard_error == pytest.approx(fit.standard_error, abs=1e-9)
    shuffled = np.random.default_rng(0).permutation(len(a))
    again = fit_bradley_terry(a[shuffled], b[shuffled], won[shuffled], prompts[shuffled], 6)
    assert again.theta == pytest.approx(fit.theta, abs=1e-9)


def test_judging_everything_twice_changes_no_interval():
    _, a, b, won, prompts = table(3)
    once = fit_bradley_terry(a, b, won, prompts, 6)
    twice = fit_bradley_terry(*[np.tile(x, 2) for x in (a, b, won, prompts)], 6)
    assert twice.theta == pytest.approx(once.theta, abs=1e-9)
    assert twice.standard_error == pytest.approx(once.standard_error, rel=1e-6)


def test_intervals_cover_the_truth():
    covered = total = 0
    for seed in range(150):
        theta, a, b, won, prompts = table(seed, models=4, n=400, ties=0.0)
        fit = fit_bradley_terry(a, b, won, prompts, 4)
        covered += int((np.abs(fit.theta - theta) < 1.96 * fit.standard_error).sum())
        total += 4
    assert 0.92 < covered / total < 0.98


def test_unbeaten_model_gets_the_stated_prior():
    a, b = np.array([0] * 10 + [1] * 10), np.array([1] * 10 + [2] * 10)
    won = np.array([1.0] * 10 + [1.0, 0.0] * 5)
    fit = fit_bradley_terry(a, b, won, np.arange(20), 3)
    assert fit.prior == 1.0
    assert np.isfinite(fit.theta).all()
    assert np.isfinite(fit.standard_error).all()
    assert fit.theta[0] > fit.theta[1]
    assert len(fit.components) == 1
    with pytest.raises(ValueError, match="no maximum"):
        fit_bradley_terry(a, b, won, np.arange(20), 3, prior=0.0)


def test_prior_is_games_against_an_average_player():
    """The prior's maximum equals plain likelihood with half-won games against a player held at 0."""
    _, a, b, won, prompts = table(5, models=3, n=60)
    fit = fit_bradley_terry(a, b, won, prompts, 3, prior=2.0)
    x = np.zeros((60 + 3, 3))
    x[np.arange(60), a] += 1
    x[np.arange(60), b] -= 1
    x[60:] = np.eye(3)
    weights = np.array([1.0] * 60 + [2.0] * 3)
    other = sm.GLM(np.append(won, [0.5] * 3), x, family=sm.families.Binomial(), freq_weights=weights).fit(
        tol=1e-12
    )
    assert fit.theta == pytest.approx(other.params - other.params.mean(), abs=1e-7)


def test_models_never_compared_are_seen_as_two_tables():
    a, b = np.array([0, 0, 2, 2]), np.array([1, 1, 3, 3])
    fit = fit_bradley_terry(a, b, np.array([1.0, 0, 1, 0]), np.arange(4), 4)
    assert fit.components == [[0, 1], [2, 3]]
    assert fit.prior == 1.0
    assert fit.theta == pytest.approx(np.zeros(4), abs=1e-12)


def test_only_ties_dropped_leaves_everybody_average():
    fit = fit_bradley_terry(np.array([0, 0]), np.array([1, 1]), np.full(2, 0.5), np.arange(2), 2, ties="drop")
    assert fit.theta == pytest.approx([0, 0])
    assert np.isnan(fit.standard_error).all()


def test_extreme_table_converges():
    a, b = np.zeros(10_001, dtype=int), np.ones(10_001, dtype=int)
    won = np.ones(10_001)
    won[0] = 0
    fit = fit_bradley_terry(a, b, won, np.arange(10_001), 2)
    assert fit.theta[0] - fit.theta[1] == pytest.approx(math.log(10_000), abs=1e-6)


def test_elo_by_hand():
    ratings = sequential_elo(np.array([0, 1]), np.array([1, 0]), np.array([1.0, 0.5]), 2, k=4, start=1000)
    second = 4 * (0.5 - 1 / (1 + 10 ** ((1002 - 998) / 400)))
    assert ratings == pytest.approx([1002 - second, 998 + second])
    assert pytest.approx(173.7178) == SCALE
