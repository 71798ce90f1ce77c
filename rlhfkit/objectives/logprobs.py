"""Log-probabilities of target tokens without ever holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

#: Tokens whose logits are alive at once. Beyond this, a chunk's logits are computed again in backward.
CHUNK = 2048
#: Tokens whose probabilities are alive at once while the entropy is summed; few enough for the cache.
BLOCK = 64


def token_logprobs(
    hidden: Tensor,  # (B, T, D) final hidden states of the predicting positions
    head: Callable[[Tensor], Tensor],  # (N, D) -> (N, V) logits
    targets: Tensor,  # (B, T) long
    mask: Tensor,  # (B, T) bool: positions to compute
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:  # (B, T) float32, 0 outside the mask; the same for entropy or None
    """log softmax(head(hidden) / temperature) of the targets, in float32, with exact gradients.

    The head runs on masked positions only. More than `chunk` of them are taken chunk by chunk and each
    chunk is recomputed in backward, so that memory does not grow with tokens x vocabulary. The entropy of
    the whole distribution (nats) is a measurement: it carries no gradient, since PPO here has no bonus.

    The temperature must be the one that the tokens were sampled at, for policy and reference alike
    (Ziegler et al., `policy.py`): otherwise ratios and KL are off from the first step.
    """

    def part(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden).float()
        if temperature != 1.0:
            logits = logits / temperature
        logprobs = logits.log_softmax(-1)
        entropy = _entropy(logprobs.detach()) if with_entropy else logits.new_zeros(0)
        return -F.nll_loss(logprobs, targets, reduction="none"), entropy

    kept_hidden, kept_targets = hidden[mask], targets[mask]  # (N, D), (N,)
    if len(kept_targets) <= chunk:
        parts = [part(kept_hidden, kept_targets)]
    else:
        parts = [
            cast(tuple[Tensor, Tensor], checkpoint(part, h, y, use_reentrant=False, preserve_rng_state=False))
            for h, y in zip(torch.split(kept_hidden, chunk), torch.split(kept_targets, chunk), strict=True)
        ]
    logprobs = _spread(torch.cat([logprob for logprob, _ in parts]), mask)
    return logprobs, _spread(torch.cat([entropy for _, entropy in parts]), mask) if with_entropy else None


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values of the masked positions, in row order, back to (B, T) with 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _entropy(logprobs: Tensor) -> Tensor:
    """Entropy in nats of distributions (N, V), as (N,). A log-probability of -inf adds nothing."""
    lowest = torch.finfo(logprobs.dtype).min
    blocks = torch.split(logprobs, BLOCK)
    return -torch.cat([(block.exp() * block.clamp(min=lowest)).sum(-1) for block in blocks])
