"""Ratings from pairwise judgements: Bradley-Terry by maximum likelihood, and sequential Elo beside it.

P(a beats b) = 1 / (1 + exp(theta_b - theta_a)); rating = 1000 + theta * 400 / ln 10, the scale of Elo and of
FastChat's arena (`serve/monitor/rating_systems.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlhfkit.evaluation.intervals import Floats, Ints, Z

#: rating points in one unit of theta
SCALE = 400 / math.log(10)
#: comparisons, half of them won, that every model plays against an average one where the table needs it
DEFAULT_PRIOR = 1.0


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """Abilities centred on 0, with standard errors clustered by prompt."""

    theta: Floats  # (M,)
    standard_error: Floats  # (M,); nan with fewer than two prompts
    prior: float  # the pseudo-comparisons that were needed; 0 = plain maximum likelihood
    components: list[list[int]]  # models that are compared with one another, directly or through others

    def rating(self, model: int) -> tuple[float, float, float]:
        """Rating of a model and the ends of its 95% interval."""
        theta, half = float(self.theta[model]), Z * float(self.standard_error[model])
        return 1000 + SCALE * theta, 1000 + SCALE * (theta - half), 1000 + SCALE * (theta + half)


def fit_bradley_terry(
    a: Ints,  # (n,) model numbers
    b: Ints,  # (n,)
    preference: Floats,  # (n,) 1 = a won, 0 = b, between: shared
    prompts: Ints,  # (n,) prompt numbers
    models: int,
    *,
    ties: Literal["half", "drop"] = "half",
    prior: float | None = None,
) -> BradleyTerry:
    """Fit abilities to judgements.

    A tie is half a win for each, or with `ties` = "drop" counts nothing. `prior` is the number of
    pseudo-comparisons, half won and half lost, of every model against an average one (theta = 0). None
    means none unless the likelihood has no maximum (Ford 1957: some group of models never lost to, or was
    never compared with, the others), then `DEFAULT_PRIOR`: the result is always finite.
    """
    keep = (a != b) & ((preference != 0.5) if ties == "drop" else True)
    a, b, preference, prompts = a[keep], b[keep], preference[keep], prompts[keep]
    won = np.bincount(a * models + b, preference, models**2)
    lost = np.bincount(b * models + a, 1 - preference, models**2)
    wins = (won + lost).astype(np.float64).reshape(models, models)
    met = _reachable(wins + wins.T > 0)
    components = sorted({tuple(np.flatnonzero(row).tolist()) for row in met})
    if prior is None:
        prior = 0.0 if bool(_reachable(wins > 0).all()) else DEFAULT_PRIOR
    elif prior == 0 and not _reachable(wins > 0).all():
        raise ValueError("without a prior the ratings of this table have no maximum")
    theta, information = _maximise(wins, prior)
    error = _standard_errors(a, b, preference, prompts, theta, information)
    return BradleyTerry(theta - theta.mean(), error, prior, [list(c) for c in components])


def _reachable(edges: np.ndarray) -> np.ndarray:
    """Transitive and reflexive closure of a relation (M, M) of booleans."""
    closure = edges | np.eye(len(edges), dtype=bool)
    for _ in range(max(1, len(edges).bit_length())):
        closure = (closure.astype(np.float32) @ closure.astype(np.float32)) > 0
    return np.asarray(closure)


def _maximise(wins: Floats, prior: float) -> tuple[Floats, Floats]:
    """Newton's method on the concave log-likelihood: theta (M,) and the information matrix (M, M).

    The likelihood does not change when all abilities move together; without a prior the ones matrix holds
    that direction still, so that the solution stays centred.
    """
    games = wins + wins.T
    theta = np.zeros(len(wins))
    for _ in range(100):
        expected = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))  # P(row beats column)
        average = 1 / (1 + np.exp(-theta))
        gradient = (wins - games * expected).sum(axis=1) + prior * (0.5 - average)
        weight = games * expected * (1 - expected)
        information = np.diag(weight.sum(axis=1) + prior * average * (1 - average)) - weight
        information += (prior == 0) / len(wins)
        step = np.linalg.solve(information, gradient)
        largest = float(np.abs(step).max())
        theta = theta + step / max(1.0, largest)  # a step of at most 1 cannot overshoot far
        if largest < 1e-12:
            break
    return theta, information


def _standard_errors(
    a: Ints, b: Ints, preference: Floats, prompts: Ints, theta: Floats, information: Floats
) -> Floats:
    """Sandwich errors of the centred abilities: judgements of one prompt may agree with one another."""
    models = len(theta)
    numbers, index = np.unique(prompts, return_inverse=True)
    if len(numbers) < 2:
        return np.full(models, np.nan)
    residual = preference - 1 / (1 + np.exp(theta[b] - theta[a]))
    size = len(numbers) * models
    scores = np.bincount(index * models + a, residual, size) - np.bincount(index * models + b, residual, size)
    scores = scores.reshape(-1, models)
    meat = scores.T @ scores * len(numbers) / (len(numbers) - 1)
    centre = np.eye(models) - 1 / models
    bread = centre @ np.linalg.inv(information)
    return np.asarray(np.sqrt(np.maximum(np.diag(bread @ meat @ bread.T), 0)))


def sequential_elo(
    a: Ints, b: Ints, preference: Floats, models: int, *, k: float = 4.0, start: float = 1000.0
) -> list[float]:
    """Online Elo in the order given (K = 4, start 1000, as FastChat's): for comparison, since it depends on
    the order where Bradley-Terry does not."""
    rating = [start] * models
    for i, j, won in zip(a.tolist(), b.tolist(), preference.tolist(), strict=True):
        if i != j:
            gain = k * (won - 1 / (1 + 10 ** ((rating[j] - rating[i]) / 400)))
            rating[i] += gain
            rating[j] -= gain
    return rating
