"""Drawing tokens: random numbers that belong to a row, and the distribution they pick from.

The random numbers of a completion depend on its row seed and the token's place, on nothing else: not on the
other rows of the batch, their order, or how often the run was resumed. There is no generator state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What may follow and when to stop; the defaults are plain sampling, as PPO's rollouts need it."""

    max_new_tokens: int
    temperature: float = 1.0  #: 0 is greedy
    top_k: int = 0  #: keep the k likeliest tokens (and those tied with the last of them); 0 = all
    top_p: float = 1.0  #: keep the likeliest tokens up to and including the one that reaches this mass
    eos_ids: tuple[int, ...] = ()


def row_seed(*parts: int | str | Sequence[int]) -> int:
    """A 63-bit seed for one completion, e.g. of (seed, prompt ids, sample number).

    It is a hash, so neighbouring seeds and prompts give unrelated streams; equal parts give equal seeds on
    every machine.
    """
    plain = [part if isinstance(part, int | str) else list(part) for part in parts]
    digest = hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, whose own shift copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(seeds: Tensor, steps: Tensor) -> Tensor:
    """Output number `steps` (0 = first) of SplitMix64 started at `seeds`, both int64; int64 bits.

    Steele, Lea and Flood (2014). Being a hash of seed + step * constant, it can be read at any place.
    """
    z = seeds + (steps + 1) * -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
    z = (z ^ _shifted(z, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    z = (z ^ _shifted(z, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return z ^ _shifted(z, 31)


def uniforms(seeds: Tensor, steps: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, one a row (B,).

    48 bits: fewer than a float64 holds, so that u * total stays below the total in `draw`.
    """
    return _shifted(splitmix64(seeds, steps), 16).double() * 2.0**-48


def draw(logits: Tensor, u: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The tokens (B,) that `u` (B,) picks from `logits` (B, V), and their log-probabilities (B,) in float32.

    Log-probabilities are those of softmax(logits / temperature), before top_k and top_p take tokens away:
    what a policy gradient needs, and comparable between settings. With temperature 0 the token is the
    likeliest one, and its log-probability that of the plain softmax.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        logprobs = logits.log_softmax(-1)
        tokens = logprobs.argmax(-1)
    else:
        logprobs = (logits / sampling.temperature).log_softmax(-1)
        cumulative = _kept(logprobs.exp(), sampling).cumsum(-1, dtype=torch.float64)  # (B, V)
        # right=True steps over tokens of probability 0, also when u is 0
        place = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)
        tokens = place[:, 0].clamp(max=logits.shape[-1] - 1)  # NaN logits lead past the end; see `generate`
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _kept(probs: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (B, V) with 0 for the tokens that top_k and then top_p exclude; not renormalised."""
    if 0 < sampling.top_k < probs.shape[-1]:
        threshold = probs.topk(sampling.top_k).values[:, -1:]
        probs = torch.where(probs >= threshold, probs, 0.0)
    if sampling.top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1, dtype=torch.float64) - ranked  # mass of likelier tokens
        ranked = torch.where(before < sampling.top_p * ranked.sum(-1, keepdim=True), ranked, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
    return probs
