"""Masked arithmetic that every objective shares.

Every per-token tensor after the model is target-aligned, (B, T) with T = S - 1: position t speaks of
`input_ids[:, t + 1]`. Masks are bool and True means "counts"; whatever stands outside a mask (padding,
NaN) never reaches a result or a gradient.

Statistics of a whole rollout must be the same on one process and on many. Functions that need them take
`reduce`, which sums a small tensor over all processes (`engine.dist`); the default is one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

#: Named sums over the tokens (or pairs) of a batch; the caller adds them up and divides by the weight.
#: The one exception is a name that ends in `_max`: a maximum, to be reduced by maximum.
Metrics: TypeAlias = dict[str, Tensor]

Reduce: TypeAlias = Callable[[Tensor], Tensor]


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` where `mask` is True, a scalar; NaN elsewhere is harmless, also to gradients."""
    return torch.where(mask, x, 0.0).sum()


def masked_mean(x: Tensor, mask: Tensor, *, reduce: Reduce | None = None) -> Tensor:
    """Mean of `x` where `mask` is True, a scalar; 0 when nothing counts."""
    totals = torch.stack([masked_sum(x, mask), mask.sum().to(x.dtype)])
    total, count = (reduce(totals) if reduce else totals).unbind()
    return total / count.clamp(min=1)


def whiten(
    x: Tensor,  # (B, T)
    mask: Tensor,  # (B, T) bool
    shift_mean: bool = True,
    *,
    reduce: Reduce | None = None,
) -> Tensor:  # (B, T), 0 outside the mask
    """Scale to variance 1 over the mask; with `shift_mean` also to mean 0, otherwise the mean is kept.

    The variance is biased (divided by n) with 1e-8 inside the root, as in Ziegler et al. (2019);
    torch.var's default is unbiased and differs on short masks. Constant input gives 0, not NaN.
    """
    # float64: large rewards with a small spread must not lose the spread
    wide = torch.where(mask, x, 0.0).double()
    mean = masked_mean(wide, mask, reduce=reduce)
    variance = masked_mean((wide - mean) ** 2, mask, reduce=reduce)
    white = (wide - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        white = white + mean
    return torch.where(mask, white, 0.0).to(x.dtype)


def explained_variance(
    values: Tensor,  # (B, T)
    returns: Tensor,  # (B, T)
    mask: Tensor,  # (B, T) bool
    *,
    reduce: Reduce | None = None,
) -> Tensor:
    """1 - mean((V - R)^2) / var(R) over the mask: 1 for perfect values, 0 for V = mean(R).

    With constant returns it is not defined; the result is then NaN.
    """
    returns = torch.where(mask, returns, 0.0).double()
    error = masked_mean((values.double() - returns) ** 2, mask, reduce=reduce)
    mean = masked_mean(returns, mask, reduce=reduce)
    variance = masked_mean((returns - mean) ** 2, mask, reduce=reduce)
    return torch.where(variance > 0, 1 - error / variance, torch.nan).float()
