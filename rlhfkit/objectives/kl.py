"""How far the policy has moved: per-token KL estimators, Ziegler's controller, the KL of best-of-n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Estimator: TypeAlias = Literal["k1", "k2", "k3"]


def token_kl(
    logprobs: Tensor,  # (B, T) of the policy that sampled
    ref_logprobs: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T) bool
    estimator: Estimator = "k1",
) -> Tensor:  # (B, T), 0 outside the mask
    """KL(policy || reference) per sampled token, in nats, with x = logprobs - ref_logprobs.

    k1 = x: unbiased, may be negative; the one that belongs in a reward.
    k2 = x^2 / 2: biased, low variance.
    k3 = exp(-x) - 1 + x: unbiased, never negative.
    (Schulman, "Approximating KL divergence".) The sum over a row estimates the KL of whole responses;
    prompt tokens and padding count nothing because the mask leaves them out.
    """
    x = torch.where(response_mask, logprobs - ref_logprobs, 0.0)
    if estimator == "k1":
        return x
    if estimator == "k2":
        return x**2 / 2
    return torch.expm1(-x) + x


@dataclass
class AdaptiveKL:
    """Ziegler's proportional controller of the KL coefficient; `coef` is all of its state.

    e = clip(KL / target - 1, -0.2, 0.2); coef <- coef * (1 + e * samples / horizon), as in
    `AdaptiveKLController` of openai/lm-human-preferences (there: 0.15, target 6 nats, horizon 10,000).
    """

    coef: float
    target: float  # nats per response
    horizon: float = 10_000  # samples

    def update(self, kl: float, samples: int) -> float:
        """Take the mean KL per response over the `samples` of one rollout; return the new coefficient."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * samples / self.horizon
        return self.coef


def best_of_n_kl(n: int) -> float:
    """KL in nats between best-of-n sampling and the sampling policy: ln n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def best_of_n_expected(proxy: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Expected gold score of the proxy's favourite among n, from N >= n samples of one prompt.

    The mean over all subsets of size n, in closed form and so unbiased (Gao et al. 2022, section 2): sorted
    by proxy, the sample of rank k (1 = worst) wins in C(k - 1, n - 1) of the C(N, n) subsets. Samples with
    equal proxy scores share their weights.
    """
    total = len(proxy)
    assert 1 <= n <= total
    weights = [0.0] * total
    weights[-1] = n / total
    for k in range(total - 1, n - 1, -1):  # C(k - 1, n - 1) = C(k, n - 1) * (k + 1 - n) / k
        weights[k - 1] = weights[k] * (k + 1 - n) / k
    ranked = sorted(zip(proxy, gold, strict=True))
    expected, start = 0.0, 0
    for _, group in groupby(ranked, key=lambda pair: pair[0]):
        tied = [value for _, value in group]
        expected += math.fsum(weights[start : start + len(tied)]) * math.fsum(tied) / len(tied)
        start += len(tied)
    return expected
