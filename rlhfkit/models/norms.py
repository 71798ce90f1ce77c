"""Root-mean-square normalisation on the CPU: fewer passes over the numbers and less kept for the gradient.

torch has a fused kernel on a GPU only. On a CPU it puts the norm together from a dozen operations, which keep
several float32 copies of what came in; this keeps what came in and one number a row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` (..., D) divided by the root of its mean square and scaled by `weight` (D,), in the dtype of `x`.

    Zhang and Sennrich (2019). Computed in float32 at least; only the result is rounded.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(torch.autograd.Function):
    """y = n w with n = x s and s = (mean(x^2) + eps)^(-1/2): dx = s (g w - n mean(g w n)), dw = sum(g n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x * scale, weight, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        for_weight = (normed * gradients[0]).sum(dim=tuple(range(x.dim() - 1)))
        inner = gradients[0] * weight.to(scale.dtype)  # g w
        along = (inner * normed).mean(dim=-1, keepdim=True)
        for_x = torch.mul(inner.addcmul_(normed, along, value=-1), scale, out=torch.empty_like(x))
        return for_x, for_weight.to(weight.dtype), None
