"""What the CPU at hand is good at, and weights laid out for it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def fast_bfloat16() -> bool:
    """Does the CPU have instructions for bfloat16 products (AVX512-BF16 or AMX)?

    With them such products take half to a quarter of float32's time; without, they are emulated. The answer
    comes from the processor's feature flags, not from a measurement: it must not change between two runs.
    """
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)


def prepacked(weight: Tensor) -> Tensor | None:
    """The matrix (N, K) in the layout that oneDNN multiplies with; None where that does not exist.

    `multiply` with it gives the bits of `torch.nn.functional.linear`, which lays the weight out anew for
    every product: for a few rows that takes as long as the product itself.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not fast_bfloat16():
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    except (AttributeError, RuntimeError):  # a torch without oneDNN or with other names
        return None
    return packed


def multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K) times a prepacked (N, K), transposed, plus the bias (N,): (..., N). No gradients."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out
