"""Length-controlled win rates: what the judge would have said, had both completions been equally long.

The regression of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475; `metrics/glm_winrate.py`):

    logit P(model beats baseline on x) = theta + phi * tanh((len_b - len_m) / std(len_b - len_m))
                                         [+ psi * difficulty(x)]

with lengths in characters. The controlled win rate is the mean over x of P with the length term at 0. The
default leaves the difficulty term out (AlpacaEval's minimal variant), so it is 1 / (1 + exp(-theta)).

Where this departs from AlpacaEval: the coefficients are plain maximum likelihood. AlpacaEval adds an L1
penalty chosen by cross-validation and two outputs of a "gamed" baseline that only its own benchmark has. On
simulated evaluations of its 805 prompts the penalty moves the rate by 0.0003 (at most 0.0015); with 100 or
200 prompts by up to 0.06, towards one half. Where the likelihood has no maximum (the model won everything,
say) a ridge penalty of 1 is used and reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlhfkit.evaluation.intervals import Floats, Ints

#: the smallest curvature per judgement that a likelihood with a maximum has; below, the fit runs away
_FLAT = 1e-7


@dataclass(frozen=True, slots=True)
class LengthControl:
    """The fitted regression of one model against the baseline."""

    win_rate: float  # 0..1
    standard_error: float  # clustered by prompt, by the delta method; nan with fewer than two prompts
    theta: float
    phi: float
    psi: float  # 0 without a difficulty term
    ridge: float  # 0, or the penalty that a likelihood without a maximum needed


def length_control(
    won: Floats,  # (n,) preference for the model, 0..1
    length_model: Floats,  # (n,) characters
    length_baseline: Floats,  # (n,)
    prompts: Ints,  # (n,)
    difficulty: Floats | None = None,  # (n,)
) -> LengthControl:
    """Fit the regression to the judgements of one model against the baseline (n >= 1)."""
    features = [np.ones(len(won)), length_feature(length_model, length_baseline)]
    if difficulty is not None:
        features.append(difficulty)
    x = np.stack(features, axis=1)
    used = (x != 0).any(axis=0)  # equal lengths everywhere: nothing to estimate phi from
    coefficients = np.zeros(x.shape[1])
    coefficients[used], ridge = fit_logistic(x[:, used], won)

    level = x.copy()
    level[:, 1] = 0
    probability = _sigmoid(level @ coefficients)
    slope = (level * (probability * (1 - probability))[:, None]).mean(axis=0)[used]
    covariance = _clustered_covariance(x[:, used], won, coefficients[used], prompts, ridge)
    theta, phi, *psi = coefficients.tolist()
    return LengthControl(
        float(probability.mean()),
        math.sqrt(float(slope @ covariance @ slope)),
        theta,
        phi,
        psi[0] if psi else 0.0,
        ridge,
    )


def length_feature(length_model: Floats, length_baseline: Floats) -> Floats:
    """tanh of the standardised length difference (n,); 0 where all differences are equal to 0."""
    difference = length_baseline - length_model
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0:  # always equally longer: as far as the data can tell, one unit
        return np.sign(difference)
    return np.tanh(difference / spread)


def fit_logistic(x: Floats, y: Floats, ridge: float = 0.0) -> tuple[Floats, float]:
    """Logistic regression of y in 0..1 (n,) on x (n, p), by Newton's method: coefficients (p,) and the ridge.

    With `ridge` 0 and no maximum, the fit is repeated with a ridge of 1 on every coefficient.
    """
    coefficients = np.zeros(x.shape[1])
    loss = math.inf
    for _ in range(100):
        probability = _sigmoid(x @ coefficients)
        gradient = x.T @ (y - probability) - ridge * coefficients
        hessian = (x * (probability * (1 - probability))[:, None]).T @ x + ridge * np.eye(len(coefficients))
        if ridge == 0 and np.linalg.eigvalsh(hessian)[0] < _FLAT * len(y):
            return fit_logistic(x, y, ridge=1.0)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (new := _loss(x, y, coefficients + size * step, ridge)) > loss and size > 1e-9:
            size /= 2
        coefficients, loss = coefficients + size * step, new
        if float(np.abs(step).max()) < 1e-12:
            break
    return coefficients, ridge


def prompt_difficulty(
    model: Ints,  # (n,) model numbers
    prompts: Ints,  # (n,) prompt numbers 0..C-1
    won: Floats,  # (n,) preference for the model over the baseline
    feature: Floats,  # (n,) from `length_feature`, model by model
) -> Floats:  # (n,)
    """How much harder than average each prompt makes it to beat the baseline, as a feature (n,).

    AlpacaEval's joint regression over all models with psi = 1: logit P = theta_m + phi_m * feature +
    difficulty_x, with a ridge of 1 on the difficulties (one prompt has only as many judgements as there are
    models) and one of 0.001 on the rest. Alternates Newton steps on all difficulties and on every model.
    """
    difficulty = np.zeros(int(prompts.max()) + 1)
    lines = np.zeros((int(model.max()) + 1, 2))  # theta and phi of every model
    x = np.stack([np.ones(len(won)), feature], axis=1)
    for _ in range(500):
        before = difficulty
        p = _sigmoid((x * lines[model]).sum(axis=1) + difficulty[prompts])
        step = (np.bincount(prompts, won - p) - difficulty) / (np.bincount(prompts, p * (1 - p)) + 1)
        difficulty = difficulty + np.clip(step, -1, 1)
        lines[:, 0] += difficulty.mean()  # what all prompts share belongs to the models
        difficulty = difficulty - difficulty.mean()
        for m in range(len(lines)):
            rows = model == m
            lines[m] += _newton_step(x[rows], won[rows], difficulty[prompts[rows]], lines[m])
        if float(np.abs(difficulty - before).max()) < 1e-9:
            break
    return np.asarray(difficulty[prompts])


def _newton_step(x: Floats, y: Floats, offset: Floats, coefficients: Floats) -> Floats:
    """One bounded Newton step (p,) of a logistic regression with an offset and a slight ridge."""
    p = _sigmoid(x @ coefficients + offset)
    hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(x.shape[1])
    step = np.linalg.solve(hessian, x.T @ (y - p) - 1e-3 * coefficients)
    return np.asarray(np.clip(step, -1, 1))


def _clustered_covariance(x: Floats, y: Floats, coefficients: Floats, prompts: Ints, ridge: float) -> Floats:
    """Sandwich covariance (p, p) of logistic coefficients; nan with fewer than two prompts."""
    numbers, index = np.unique(prompts, return_inverse=True)
    count = x.shape[1]
    if len(numbers) < 2:
        return np.full((count, count), np.nan)
    probability = _sigmoid(x @ coefficients)
    hessian = (x * (probability * (1 - probability))[:, None]).T @ x + ridge * np.eye(count)
    residual = x * (y - probability)[:, None]
    scores = np.stack([np.bincount(index, residual[:, j]) for j in range(count)], axis=1)
    bread = np.linalg.inv(hessian)
    return np.asarray(bread @ scores.T @ scores @ bread * len(numbers) / (len(numbers) - 1))


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -z)))


def _loss(x: Floats, y: Floats, coefficients: Floats, ridge: float) -> float:
    """Negative log-likelihood plus the penalty."""
    logits = x @ coefficients
    return float((np.logaddexp(0, logits) - y * logits).sum() + ridge / 2 * coefficients @ coefficients)
