"""What the two kinds of model scorers share: loading, and completions as token sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rlhfkit.data.examples import answer_ids
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.engine.dist import resolve_device
from rlhfkit.errors import DataError, RlhfkitError
from rlhfkit.scorers import Scorable, ScorerConfig


def place(config: ScorerConfig) -> tuple[torch.device, torch.dtype]:
    """Where to score and in what precision: float32 unless bfloat16 is asked for, whatever the device."""
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    return resolve_device(config.device), dtype


def sequences(
    tokenizer: Tokenizer, items: Sequence[Scorable], max_len: int
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids with their end) of each item, as the trainers make them.

    Raises DataError when one is longer than the model's context: a cut answer would be scored by its middle.
    """
    out = []
    for item in items:
        before, after = answer_ids(tokenizer, item.prompt, item.completion)
        if len(before) + len(after) > max_len:
            raise DataError(
                f"id {item.id!r}: prompt and completion have {len(before) + len(after)} tokens, "
                f"the scorer's context is {max_len}",
                hint="leave such records out, or score with a model of longer context",
            )
        out.append((before, after))
    return out


def require_finite(items: Sequence[Scorable], scores: Sequence[float]) -> None:
    """Refuse NaN and infinity, which no reader of scores could use."""
    for item, score in zip(items, scores, strict=True):
        if not math.isfinite(score):
            raise RlhfkitError(f"id {item.id!r}: the score is {score}", hint="try --dtype float32")
