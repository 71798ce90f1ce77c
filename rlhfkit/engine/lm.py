"""Next-token prediction as an objective of the loop: used by pretrain, sft and PPO's ptx term."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhfkit.data.batching import Batch
from rlhfkit.engine.dist import Dist
from rlhfkit.engine.loop import Figures, Objective, Sums
from rlhfkit.models.transformer import Transformer
from rlhfkit.objectives.language import lm_loss
from rlhfkit.objectives.logprobs import token_logprobs


def batch_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """Log-probability of every target that counts, (B, T), 0 elsewhere."""
    mask, targets = batch.loss_mask, batch.input_ids[:, 1:]
    everywhere = bool(mask.all())
    hidden = model.hidden(
        batch.input_ids[:, :-1],
        attention_mask=None if batch.segment_ids is not None else batch.attention_mask[:, :-1],
        position_ids=None if batch.position_ids is None else batch.position_ids[:, :-1],
        segment_ids=None if batch.segment_ids is None else batch.segment_ids[:, :-1],
        keep=None if everywhere else mask.flatten().nonzero()[:, 0],
    )
    if everywhere:
        return token_logprobs(hidden, model.head, targets, mask)[0]
    counting = targets[mask][None]
    logprobs, _ = token_logprobs(
        hidden[None], model.head, counting, torch.ones_like(counting, dtype=torch.bool)
    )
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs)


def lm_objective(
    model: Transformer,
    batches: Sequence[Callable[[], Batch]],
    weight: float,
    name: str = "lm",
    coef: float = 1.0,
) -> Objective:
    """The negative log-likelihood of a batch as an `Objective`; `weight` is its number of targets."""

    def loss_of(make: Callable[[], Batch]) -> tuple[Tensor, Sums]:
        batch = make()
        loss, _ = lm_loss(batch_logprobs(model, batch), batch.loss_mask)
        return loss, {}

    return Objective(name, [lambda make=make: loss_of(make) for make in batches], weight, coef)  # type: ignore[misc]


@torch.no_grad()
def evaluate_lm(model: Transformer, batches: Sequence[Callable[[], Batch]], dist: Dist) -> Figures:
    """`eval/loss` in nats a token over all targets of `batches` (this process's share of them)."""
    totals = {"nll": 0.0, "tokens": 0.0}
    for make in batches:
        batch = make()
        totals["nll"] -= float(batch_logprobs(model, batch).double().sum())
        totals["tokens"] += float(batch.loss_mask.sum())
    totals = dist.sum_dict(totals)
    return {"eval/loss": totals["nll"] / max(totals["tokens"], 1.0)}
