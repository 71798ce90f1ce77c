"""Rankings out of scores: tiers, ties within a margin, and the noise of a simulated labeller."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

Tiers = list[list[int]]


def tiers_of(scores: Sequence[float], margin: float = 0.0) -> Tiers:
    """Tiers of indices, best first. A tier holds every score within `margin` of its best one."""
    tiers: Tiers = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if tiers and scores[tiers[-1][0]] - scores[index] <= margin:
            tiers[-1].append(index)
        else:
            tiers.append([index])
    return [sorted(tier) for tier in tiers]


def first_equals(texts: Sequence[object]) -> list[int]:
    """For every text, the index of the first one that is equal to it."""
    first: dict[object, int] = {}
    return [first.setdefault(text, index) for index, text in enumerate(texts)]


def perturbed(
    scores: Sequence[float], tau: float, seed: int, prompt: str, texts: Sequence[str]
) -> list[float]:
    """Scores plus `tau` times standard Gumbel noise: ranking by them is a draw from Plackett-Luce.

    The chance that a is put before b is 1 / (1 + exp((score_b - score_a) / tau)). The noise of a completion
    depends on the seed, the prompt, its place and its text, and on nothing else: neither the batch nor the
    rest of the file can change it.
    """
    return [
        score + tau * _gumbel(f"{seed}\0{prompt}\0{index}\0{text}")
        for index, (score, text) in enumerate(zip(scores, texts, strict=True))
    ]


def _gumbel(key: str) -> float:
    """A standard Gumbel number made of a key."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    uniform = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52  # never 0, never 1
    return -math.log(-math.log(uniform))
