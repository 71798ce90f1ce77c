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

#: Tokens of the vocabulary that a draw looks at together.
PICK_BLOCK = 64
#: The largest float64 below 1.
BELOW_ONE = 1 - 2.0**-53


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
        logprobs, tokens = logits.log_softmax(-1).max(-1)
        return tokens, logprobs
    probs = (logits if sampling.temperature == 1 else logits / sampling.temperature).softmax(-1)
    tokens = _pick(_kept(probs, sampling), u)
    return tokens, probs.gather(-1, tokens[:, None])[:, 0].log()


def _pick(weights: Tensor, u: Tensor) -> Tensor:
    """The tokens (B,) at the shares `u` (B,) of the running sum over `weights` (B, V), in float64.

    First a block of the vocabulary is found, then the token in it: a running sum over all of V would take
    longer than everything else about a draw. Tokens of weight 0 are stepped over, also when u is 0.
    """
    vocab = weights.shape[-1]
    missing = -vocab % PICK_BLOCK
    if missing:
        weights = torch.nn.functional.pad(weights, (0, missing))
    blocks = weights.view(len(weights), -1, PICK_BLOCK)  # (B, N, PICK_BLOCK)
    ends = blocks.sum(-1).cumsum(-1, dtype=torch.float64)  # (B, N)
    target = u[:, None] * ends[:, -1:]
    # NaN leads past the end; `generate` sees it in the log-probability
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[-1] - 1)  # (B, 1)
    chosen = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]]  # (B, PICK_BLOCK)
    inside = chosen.cumsum(-1, dtype=torch.float64)
    end = ends.gather(-1, block)
    start = torch.where(block > 0, ends.gather(-1, (block - 1).clamp_(min=0)), 0.0)
    # The share within the block, since its weights add up to end - start only up to rounding.
    share = (target - start) / (end - start)
    last = inside[:, -1:]
    place = torch.searchsorted(inside, torch.minimum(share * last, last * BELOW_ONE), right=True)
    return (block * PICK_BLOCK + place)[:, 0].clamp_(max=vocab - 1)


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
