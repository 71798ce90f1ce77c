"""Uncertainty of a mean over judgements: standard errors, intervals and tests that respect prompts.

Several judgements of one prompt are not independent, so everything here takes the prompt as the unit: a
mean is given by the sum and the number of judgements of every prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

LEVEL = 0.95
_NORMAL = NormalDist()
#: half-width of a 95% normal interval, in standard errors
Z = _NORMAL.inv_cdf(0.5 + LEVEL / 2)
#: random numbers drawn at once by the bootstrap; bounds its memory
_CHUNK = 2**21


@dataclass(frozen=True, slots=True)
class PromptMeans:
    """Judgements added up by prompt."""

    sums: Floats  # (C,) over the judgements of a prompt
    counts: Floats  # (C,) judgements of it, at least 1

    @classmethod
    def of(cls, values: Floats, prompts: Ints) -> PromptMeans:
        """Add `values` (n,) up by the prompt numbers `prompts` (n,)."""
        _, index = np.unique(prompts, return_inverse=True)
        return cls(np.bincount(index, values).astype(np.float64), np.bincount(index).astype(np.float64))

    @property
    def mean(self) -> float:
        """The mean over judgements; nan when there are none."""
        return float(self.sums.sum() / self.counts.sum()) if len(self.sums) else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, clustered by prompt; nan for fewer than two prompts.

        With one judgement a prompt this is std(ddof=1) / sqrt(n), as AlpacaEval prints it; otherwise it is
        the linearised (sandwich) error of a ratio of sums with the C / (C - 1) correction.
        """
        prompts = len(self.sums)
        if prompts < 2:
            return math.nan
        residuals = self.sums - self.mean * self.counts
        return math.sqrt(prompts / (prompts - 1) * float(residuals @ residuals)) / float(self.counts.sum())

    def interval(self, draws: int, rng: np.random.Generator) -> tuple[float, float]:
        """A 95% interval of the mean of values in 0..1.

        Bias-corrected accelerated bootstrap (Efron 1987) over prompts with `draws` resamples. Where the
        bootstrap has nothing to say (all prompts alike, as when every comparison is won) or is not wanted
        (`draws` = 0), the Wilson interval at the effective number of prompts.
        """
        if len(self.sums) == 0:
            return math.nan, math.nan
        spread = self.standard_error
        if draws == 0 or not spread > 0:
            return self._wilson(spread)
        means = np.sort(self._resample(draws, rng))
        low, high = np.quantile(means, self._bca_levels(means))
        return float(low), float(high)

    def _wilson(self, spread: float) -> tuple[float, float]:
        mean = min(max(self.mean, 0.0), 1.0)
        size = mean * (1 - mean) / spread**2 if spread > 0 else float(len(self.sums))
        centre = (mean + Z**2 / (2 * size)) / (1 + Z**2 / size)
        half = Z / (1 + Z**2 / size) * math.sqrt(mean * (1 - mean) / size + Z**2 / (4 * size**2))
        return max(0.0, centre - half), min(1.0, centre + half)

    def _resample(self, draws: int, rng: np.random.Generator) -> Floats:
        """Means of `draws` samples of prompts, taken with replacement: (draws,)."""
        prompts = len(self.sums)
        at_once = max(1, _CHUNK // prompts)
        even = bool(np.all(self.counts == self.counts[0]))
        means = np.empty(draws)
        for start in range(0, draws, at_once):
            size = min(at_once, draws - start)
            index = rng.integers(0, prompts, size=(size, prompts))
            totals = prompts * self.counts[0] if even else self.counts[index].sum(axis=1)
            means[start : start + size] = self.sums[index].sum(axis=1) / totals
        return means

    def _bca_levels(self, means: Floats) -> tuple[float, float]:
        """The quantiles of the resampled means that make the interval second-order accurate."""
        below = ((means < self.mean).sum() + 0.5 * (means == self.mean).sum()) / len(means)
        bias = _NORMAL.inv_cdf(min(max(float(below), 0.5 / len(means)), 1 - 0.5 / len(means)))
        without = (self.sums.sum() - self.sums) / (self.counts.sum() - self.counts)  # jackknife
        pull = without.mean() - without
        skew = float((pull**3).sum()) / (6 * float((pull**2).sum()) ** 1.5)

        def level(z: float) -> float:
            return _NORMAL.cdf(bias + (bias + z) / (1 - skew * (bias + z)))

        return level(-Z), level(Z)


def t_test(mean: float, standard_error: float, prompts: int) -> float:
    """Two-sided p-value of the hypothesis that a mean over `prompts` prompts is 0 (Student's t).

    nan for fewer than two prompts; without any spread 1 when the mean is 0, else 0.
    """
    if prompts < 2:
        return math.nan
    if standard_error == 0:
        return 1.0 if mean == 0 else 0.0
    freedom = prompts - 1
    t = mean / standard_error
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) by its continued fraction (DLMF 8.17.22)."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    if x == 0:
        return 0.0
    front = math.exp(
        a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):  # Lentz's method
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = fraction
        for step in (even, odd):
            d = 1 / ((1 + step * d) or tiny)
            c = (1 + step / c) or tiny
            fraction *= c * d
        if abs(fraction - before) < 1e-15 * abs(fraction):
            break
    return front * fraction / a
