"""Reward-model losses over whole rankings: InstructGPT's K-way pairwise loss, Ziegler's best-of-K.

A batch holds the scores of all completions of some rankings, each computed once. One ranking is one batch
element whatever its K, so that a prompt ranked nine ways does not outweigh one ranked four ways.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhfkit.objectives.common import Metrics


def ranking_loss(
    scores: Tensor,  # (N,) of all completions in the batch
    pairs: Tensor,  # (P, 2) long: index of winner, index of loser
    weights: Tensor,  # (P,) 1 / number of pairs in the pair's ranking
    margins: Tensor | None = None,  # (P,) by how much the winner should lead
    center_coef: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """Sum over rankings of the mean over their pairs of -log sigmoid(r_w - r_l - margin).

    Ouyang et al. (2022), equation 1; the divisor counts the pairs that remain once ties are dropped, so
    every ranking weighs 1 (the weights of its pairs add up to 1). `center_coef` adds
    center_coef * (r_w + r_l)^2 per pair, same weights, which holds scores near 0 (TRL suggests 0.01).

    The caller divides by the number of rankings. Metrics are weighted likewise, except `pairs` and
    `pair_accuracy`, which count pairs. Equal scores are half right.
    """
    chosen, rejected = scores.float()[pairs].unbind(-1)  # (P,), (P,)
    gap = chosen - rejected
    losses = -F.logsigmoid(gap if margins is None else gap - margins)
    weights = weights.float()
    loss = (weights * losses).sum()
    if center_coef:
        loss = loss + center_coef * (weights * (chosen + rejected) ** 2).sum()
    right = (gap.detach().sign() + 1) / 2
    metrics = {
        "loss": loss,
        "accuracy": (weights * right).sum(),
        "chosen_rewards": (weights * chosen).sum(),
        "rejected_rewards": (weights * rejected).sum(),
        "margin": (weights * gap).sum(),
        "pair_accuracy": right.sum(),
        "pairs": torch.tensor(float(len(pairs)), device=scores.device),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}


def best_of_k_loss(
    scores: Tensor,  # (N,) of all completions in the batch
    rankings: Tensor,  # (N,) long: which ranking, 0 to R - 1, a score belongs to
    shares: Tensor,  # (N,) of a ranking's 1: 1 / size of the top tier for its members, else 0
) -> tuple[Tensor, Metrics]:
    """Sum over rankings of the cross-entropy of softmax(scores of the ranking) with the best completion.

    Ziegler et al. (2019), `label_types.py`: a person picks the best of four. Several completions tied for
    best share the target. A ranking whose shares are all 0 (everything tied) contributes 0.
    """
    scores, shares = scores.float(), shares.float()
    fixed = scores.detach()
    count = int(rankings.max()) + 1 if len(rankings) else 0
    peak = fixed.new_full((count,), -torch.inf).scatter_reduce(0, rankings, fixed, "amax")[rankings]  # (N,)
    total = scores.new_zeros(count).index_add(0, rankings, (scores - peak).exp())
    loss = -(shares * (scores - peak - total.log()[rankings])).sum()
    first = (fixed == peak).float()
    firsts = scores.new_zeros(count).index_add(0, rankings, first)[rankings]
    right = (first * (shares > 0) / firsts).sum()  # completions that share the highest score share the point
    return loss, {"loss": loss.detach(), "accuracy": right}
