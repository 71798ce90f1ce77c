"""The language-modelling loss: pretraining, supervised fine-tuning, and the ptx term of PPO."""

from __future__ import annotations

from torch import Tensor

from rlhfkit.objectives.common import Metrics, masked_sum


def lm_loss(
    logprobs: Tensor,  # (B, T) of the target tokens
    loss_mask: Tensor,  # (B, T) bool, True where a target counts
) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood in nats, summed over the mask.

    The caller divides once by the tokens of the *global* batch: averaging means of micro-batches would
    change the objective with their lengths (OpenRLHF, `models/loss.py::aggregate_loss`).
    """
    nll = -masked_sum(logprobs, loss_mask)
    return nll, {"nll": nll.detach(), "tokens": loss_mask.sum()}
