"""Reward against distance from the first policy: the functional forms of Gao et al. 2022, fitted.

With d = sqrt(KL(policy || first policy)) (section 3.1 of arXiv:2210.10760):

    best-of-n  R(d) = R(0) + d (alpha - beta d)       peak at alpha / (2 beta)
    RL         R(d) = R(0) + d (alpha - beta ln d)    peak at exp(alpha / beta - 1)

The paper shifts rewards so that R(0) = 0; here R(0) is fitted as well, since a single noisy measurement of
the first policy would bend the whole curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class GaoFit:
    """A fitted form."""

    form: Literal["best-of-n", "rl"]
    start: float  # R(0)
    alpha: float
    beta: float
    r_squared: float

    def __call__(self, distance: float) -> float:
        """Reward at a distance d = sqrt(KL)."""
        if distance == 0:
            return self.start
        bend = distance if self.form == "best-of-n" else math.log(distance)
        return self.start + distance * (self.alpha - self.beta * bend)

    @property
    def peak(self) -> float | None:
        """The distance with the highest reward; None when the reward never falls."""
        if self.beta <= 0:
            return None
        exponent = self.alpha / self.beta - 1
        if self.form == "rl":
            return math.exp(exponent) if exponent < 700 else None
        return self.alpha / (2 * self.beta) if self.alpha > 0 else None


def fit_gao(
    distances: Sequence[float], rewards: Sequence[float], form: Literal["best-of-n", "rl"]
) -> GaoFit | None:
    """Least squares; None with fewer than four points, or fewer than three distances."""
    d, r = np.array(distances, dtype=np.float64), np.array(rewards, dtype=np.float64)
    keep = np.isfinite(d) & np.isfinite(r) & (d >= 0)
    d, r = d[keep], r[keep]
    if len(d) < 4:
        return None
    bend = d if form == "best-of-n" else np.log(np.where(d > 0, d, 1.0))
    x = np.stack([np.ones(len(d)), d, -d * bend], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(x, r, rcond=None)
    if rank < 3:
        return None
    left, spread = r - x @ solution, r - r.mean()
    total = float(spread @ spread)
    explained = 1 - float(left @ left) / total if total > 0 else 1.0
    start, alpha, beta = solution.tolist()
    return GaoFit(form, start, alpha, beta, explained)
