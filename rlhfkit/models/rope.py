"""Rotary positions: frequencies with their published stretchings, and the rotation itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhfkit.models.config import Rope


class Rotary:
    """Cosines and sines for positions. Not a module: its numbers must stay float32 whatever `.to()` does."""

    def __init__(self, rope: Rope, head_dim: int, max_seq_len: int) -> None:
        self.rope = rope
        self.dim = int(head_dim * rope.partial)
        self.max_seq_len = max_seq_len
        #: factor on cosines and sines (YaRN's attention factor)
        self.factor = 1.0
        frequencies = self._frequencies()
        self._on_device = {torch.device("cpu"): frequencies}

    def __call__(self, positions: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B|1, S, 1, R/2) of `positions` (B|1, S).

        `lengths` (B|1, 1) is how long each row is: only "dynamic" scaling looks at it.
        """
        frequencies = self._on_device.get(positions.device)
        if frequencies is None:
            frequencies = self._on_device[positions.device] = self._on_device[torch.device("cpu")].to(
                positions.device
            )
        if self.rope.scaling == "dynamic":
            frequencies = self._stretched(frequencies, lengths)[:, None]  # (B|1, 1, R/2)
        angles = (positions.float()[..., None] * frequencies)[:, :, None]
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)

    def _powers(self, base: float) -> Tensor:
        # On the CPU even while the model is built on the meta device.
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32, device="cpu") / self.dim
        return torch.pow(base, exponents)

    def _frequencies(self) -> Tensor:
        plain = 1.0 / self._powers(self.rope.theta)
        match self.rope.scaling:
            case "linear":
                return plain / float(self.rope.settings["factor"])
            case "llama3":
                return self._llama3(plain)
            case "yarn":
                return self._yarn(plain)
        return plain

    def _stretched(self, frequencies: Tensor, lengths: Tensor) -> Tensor:
        """Dynamic NTK scaling: past the trained length the base grows with the row's length, row by row."""
        factor = float(self.rope.settings["factor"])
        length = lengths.clamp(min=self.max_seq_len).float()
        growth = (factor * length / self.max_seq_len - (factor - 1)) ** (self.dim / (self.dim - 2))
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32, device=frequencies.device) / self.dim
        return 1.0 / torch.pow(self.rope.theta * growth, exponents)

    def _llama3(self, plain: Tensor) -> Tensor:
        """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended."""
        settings = self.rope.settings
        factor, low, high = settings["factor"], settings["low_freq_factor"], settings["high_freq_factor"]
        trained = settings["original_max_position_embeddings"]
        waves = 2 * math.pi / plain
        blend = (trained / waves - low) / (high - low)
        blended = (1 - blend) * plain / factor + blend * plain
        scaled = torch.where(waves > trained / low, plain / factor, blended)
        return torch.where(waves < trained / high, plain, scaled)

    def _yarn(self, plain: Tensor) -> Tensor:
        """YaRN (Peng et al., 2023), with the optional settings that transformers reads."""
        settings = self.rope.settings
        trained = settings["original_max_position_embeddings"]
        factor = settings.get("factor") or self.max_seq_len / trained
        self.factor = _yarn_attention_factor(factor, settings)

        def turns_at(rotations: float) -> float:
            return self.dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(self.rope.theta))

        low, high = turns_at(settings.get("beta_fast") or 32), turns_at(settings.get("beta_slow") or 1)
        if settings.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        steps = torch.arange(self.dim // 2, dtype=torch.float32, device="cpu")
        kept = 1 - ((steps - low) / ((high - low) or 0.001)).clamp(0, 1)
        blended: Tensor = plain / factor * (1 - kept) + plain * kept
        return blended


def _yarn_attention_factor(factor: float, settings: Mapping[str, Any]) -> float:
    given = settings.get("attention_factor")
    if given is not None:
        return float(given)

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    if mscale and all_dim:
        return magnitude(mscale) / magnitude(all_dim)
    return magnitude(1.0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R numbers of each head of `x` (B, S, heads, E), first half against second half."""
    turned: Tensor = _Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


class _Rotation(torch.autograd.Function):
    """The rotation, whose gradient is the rotation back; nothing but the angles is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Four passes over half the numbers each; laid out head by head, as products of whole rows want it."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    if torch.compiler.is_compiling():
        parts = [first * cos - second * sin, second * cos + first * sin]
        return torch.cat([*parts, x[..., 2 * half :]], dim=-1)
    batch, length, heads, dim = x.shape
    out = x.new_empty((heads, batch, length, dim)).permute(1, 2, 0, 3)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    out[..., 2 * half :] = x[..., 2 * half :]
    return out
