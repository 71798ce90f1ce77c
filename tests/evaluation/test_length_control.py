"""Length-controlled win rates against statsmodels, and I47 of the fidelity list."""

import numpy as np
import pytest
import statsmodels.api as sm

from rlhfkit.evaluation.length_control import fit_logistic, length_control, length_feature, prompt_difficulty


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def simulated(seed=0, n=805, theta=0.4, phi=-1.2, longer=300):
    rng = np.random.default_rng(seed)
    base = rng.gamma(4, 250, n).round()
    mine = np.maximum(1, base + rng.normal(longer, 400, n).round())
    x = np.tanh((base - mine) / (base - mine).std(ddof=1))
    won = (rng.random(n) < sigmoid(theta + phi * x)).astype(float)
    won[rng.random(n) < 0.1] = 0.5
    return won, mine, base


@pytest.mark.parametrize("seed", range(3))
def test_equals_an_independent_glm(seed):
    won, mine, base = simulated(seed)
    fit = length_control(won, mine, base, np.arange(len(won)))
    x = sm.add_constant(np.tanh((base - mine) / np.std(base - mine, ddof=1)))
    other = sm.GLM(won, x, family=sm.families.Binomial()).fit(tol=1e-13)
    assert (fit.theta, fit.phi) == pytest.approx(tuple(other.params), abs=1e-7)
    assert fit.win_rate == pytest.approx(sigmoid(other.params[0]), abs=1e-7)
    assert fit.ridge == 0
    sandwich = sm.GLM(won, x, family=sm.families.Binomial()).fit(tol=1e-13, cov_type="HC0")
    n = len(won)
    error = sandwich.bse[0] * np.sqrt(n / (n - 1)) * fit.win_rate * (1 - fit.win_rate)
    assert fit.standard_error == pytest.approx(error, rel=1e-5)


def test_identical_completions_give_one_half():
    n = 60
    length = np.full(n, 100.0)
    fit = length_control(np.full(n, 0.5), length, length, np.arange(n))
    assert fit.win_rate == pytest.approx(0.5, abs=1e-12)
    assert fit.phi == 0


def test_judge_that_only_likes_length_comes_nearer_one_half():
    won, mine, base = simulated(theta=0.0, phi=-2.5, longer=500)
    fit = length_control(won, mine, base, np.arange(len(won)))
    assert won.mean() > 0.65
    assert abs(fit.win_rate - 0.5) < 0.05
    assert abs(fit.win_rate - 0.5) < abs(won.mean() - 0.5) / 3


def test_without_a_length_effect_it_equals_the_raw_rate():
    won, mine, base = simulated(n=20_000, theta=0.7, phi=0.0)
    fit = length_control(won, mine, base, np.arange(len(won)))
    assert fit.win_rate == pytest.approx(won.mean(), abs=0.01)


def test_swapping_model_and_baseline_gives_the_complement():
    won, mine, base = simulated()
    one = length_control(won, mine, base, np.arange(len(won)))
    two = length_control(1 - won, base, mine, np.arange(len(won)))
    assert one.win_rate + two.win_rate == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("won", [np.ones(50), np.zeros(50)])
def test_all_won_is_finite_and_says_so(won):
    rng = np.random.default_rng(0)
    mine, base = rng.integers(10, 99, 50).astype(float), rng.integers(10, 99, 50).astype(float)
    fit = length_control(won, mine, base, np.arange(50))
    assert fit.ridge == 1.0
    assert np.isfinite([fit.win_rate, fit.standard_error, fit.phi]).all()
    assert abs(fit.win_rate - won[0]) < 0.1


def test_length_alone_deciding_everything_is_finite():
    mine = np.arange(1.0, 101)
    base = np.full(100, 50.4)
    fit = length_control((mine > base).astype(float), mine, base, np.arange(100))
    assert fit.ridge == 1.0
    assert abs(fit.win_rate - 0.5) < 0.05


def test_constant_difference_cannot_be_told_from_quality():
    won = np.array([1.0, 0, 1, 1] * 10)
    fit = length_control(won, np.full(40, 70.0), np.full(40, 50.0), np.arange(40))
    assert fit.ridge == 1.0
    assert 0.5 < fit.win_rate < 0.75


def test_feature_is_signed_and_standardised():
    feature = length_feature(np.array([10.0, 30.0]), np.array([20.0, 20.0]))
    spread = np.std([10, -10], ddof=1)
    assert feature == pytest.approx(np.tanh([10 / spread, -10 / spread]))
    assert length_feature(np.array([5.0]), np.array([9.0])) == pytest.approx([1.0])


def test_ridge_fit_against_its_normal_equations():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 3)), rng.random(80)
    w, ridge = fit_logistic(x, y, ridge=2.0)
    assert ridge == 2.0
    assert x.T @ (y - sigmoid(x @ w)) == pytest.approx(2.0 * w, abs=1e-9)


def test_difficulty_recovers_hard_prompts():
    rng = np.random.default_rng(0)
    prompts, models = 200, 12
    hard = rng.normal(0, 1.5, prompts)
    skill = rng.normal(0, 1, models)
    model, prompt = np.repeat(np.arange(models), prompts), np.tile(np.arange(prompts), models)
    feature = np.tanh(rng.normal(size=prompts * models))
    won = (rng.random(prompts * models) < sigmoid(skill[model] + hard[prompt] - feature)).astype(float)
    found = prompt_difficulty(model, prompt, won, feature)
    assert found[:prompts] == pytest.approx(found[-prompts:])
    assert np.corrcoef(found[:prompts], hard)[0, 1] > 0.85
    assert found.mean() == pytest.approx(0, abs=1e-6)


def test_difficulty_is_the_maximum_of_the_joint_likelihood():
    """The gradient of the penalised joint likelihood is 0 at what comes out."""
    rng = np.random.default_rng(1)
    model, prompt = np.repeat(np.arange(4), 30), np.tile(np.arange(30), 4)
    feature, won = np.tanh(rng.normal(size=120)), rng.random(120)
    found = prompt_difficulty(model, prompt, won, feature)
    dummies = np.eye(4)[model]
    x = np.concatenate([dummies, dummies * feature[:, None]], axis=1)
    line = sm.GLM(won, x, offset=found, family=sm.families.Binomial()).fit()
    residual = won - sigmoid(x @ line.params + found)
    assert np.bincount(prompt, residual) == pytest.approx(found[:30], abs=0.02)
