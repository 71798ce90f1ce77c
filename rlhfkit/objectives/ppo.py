"""PPO on a bandit whose actions are tokens: rewards, advantages, and the two clipped losses.

Choices that the papers leave open or disagree on, and what stands here:

- the score lands on the last token of the response, EOS included (AlpacaFarm, OpenRLHF); the value beyond
  it is 0. TRL and N+ put it one slot later, which a mask then easily loses;
- losses are sums over response tokens; the caller divides by the tokens of the global batch;
- no entropy bonus: the KL penalty acts as one (Stiennon et al., 3.4);
- value clipping is an option, off by default: +-0.2 freezes the value when rewards are not unit scale.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhfkit.objectives.common import Metrics, masked_sum
from rlhfkit.objectives.kl import Estimator, token_kl

#: Beyond this the ratio's exponential overflows float32 and 0 * inf puts NaN in the gradient
#: (OpenRLHF, `models/loss.py` clamps at the same place).
LOG_RATIO_LIMIT = 20.0


def missing_eos(
    scores: Tensor,  # (B,)
    has_eos: Tensor,  # (B,) bool: the response ended by itself
    penalty: float,
    mode: Literal["replace", "subtract"] = "replace",
) -> Tensor:  # (B,)
    """Punish responses that ran into the length limit; the others keep their score.

    "replace": the score becomes -penalty (Ziegler, N+: -1). "subtract": penalty is taken off (TRL).
    """
    return torch.where(has_eos, scores, -penalty if mode == "replace" else scores - penalty)


def compute_rewards(
    logprobs: Tensor,  # (B, T) of the policy that sampled
    ref_logprobs: Tensor,  # (B, T)
    scores: Tensor,  # (B,)
    response_mask: Tensor,  # (B, T) bool, at least one True in every row
    kl_coef: float,
    kl_estimator: Estimator = "k1",
) -> Tensor:  # (B, T), 0 outside the mask
    """r_t = -kl_coef * KL_t, plus the score on the last token of the response.

    Ouyang et al. (2022), equation 2; with k1 a row sums to score - kl_coef * log(pi / pi_ref)(response).
    """
    assert bool(response_mask.any(1).all()), "a response without tokens has no slot for its score"
    rewards = -kl_coef * token_kl(logprobs, ref_logprobs, response_mask, kl_estimator)
    places = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = (places * response_mask).argmax(1, keepdim=True)  # (B, 1)
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(
    rewards: Tensor,  # (B, T)
    values: Tensor,  # (B, T) at sampling time
    mask: Tensor,  # (B, T) bool, contiguous in every row
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Tensor, Tensor]:  # advantages (B, T), returns (B, T); both 0 outside the mask
    """Generalised advantage estimation (Schulman et al., 2016) over the response tokens.

    delta_t = r_t + gamma * V_{t+1} - V_t; A_t = delta_t + gamma * lambda * A_{t+1}; return = A + V. The
    value after the last token is 0, and nothing outside the mask is read. Returns precede whitening.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_advantage = next_value = values.new_zeros(len(values))
    for t in reversed(mask.any(0).nonzero().flatten().tolist()):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * gae_lambda * next_advantage, 0.0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def ppo_policy_loss(
    logprobs: Tensor,  # (B, T) current policy, requires grad
    old_logprobs: Tensor,  # (B, T) policy that sampled the response
    advantages: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T) bool
    *,
    clip_eps: float = 0.2,
    entropy: Tensor | None = None,  # (B, T), measured only
    weights: Tensor | None = None,  # (B, T) of tokens in the loss
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate (Schulman et al., 2017), summed over response tokens, each with its weight.

    Metrics, all over the mask: `policy_loss`, `approxkl` (0.5 * dlogp^2), `approxkl_k3` (rho - 1 - log rho),
    `clipfrac`, `ratio`, `ratio_max` (a maximum), `entropy` when given. Only the loss is weighted.
    """
    log_ratio = torch.where(response_mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    advantages = torch.where(response_mask, advantages, 0.0)
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_eps, 1 + clip_eps))
    loss = masked_sum(losses if weights is None else losses * weights, response_mask)
    with torch.no_grad():
        metrics = {
            "policy_loss": loss.detach(),
            "approxkl": masked_sum(0.5 * log_ratio**2, response_mask),
            "approxkl_k3": masked_sum(torch.expm1(log_ratio) - log_ratio, response_mask),
            "clipfrac": masked_sum(((ratio - 1).abs() > clip_eps).float(), response_mask),
            "ratio": masked_sum(ratio, response_mask),
            "ratio_max": torch.where(response_mask, ratio, 0.0).amax(),
        }
        if entropy is not None:
            metrics["entropy"] = masked_sum(entropy, response_mask)
    return loss, metrics


def ppo_value_loss(
    values: Tensor,  # (B, T) current value network, requires grad
    old_values: Tensor,  # (B, T) at sampling time
    returns: Tensor,  # (B, T)
    response_mask: Tensor,  # (B, T) bool
    *,
    value_clip_eps: float | None = None,
    weights: Tensor | None = None,  # (B, T) of tokens in the loss
) -> tuple[Tensor, Metrics]:
    """0.5 * (V - R)^2 summed over response tokens, or its clipped form (Ziegler: +-0.2).

    With `value_clip_eps` the worse of the plain and the clipped error counts, where V may leave its value
    at sampling time by at most that much. Metrics: `value_loss`, `value_error` ((V - R)^2, unclipped) and
    `value_clipfrac` (where clipping made the loss worse).
    """
    values = torch.where(response_mask, values, 0.0)
    old_values = torch.where(response_mask, old_values, 0.0)
    returns = torch.where(response_mask, returns, 0.0)
    plain = (values - returns) ** 2
    worst = plain
    if value_clip_eps is not None:
        clipped = old_values + (values - old_values).clamp(-value_clip_eps, value_clip_eps)
        worst = torch.maximum(plain, (clipped - returns) ** 2)
    loss = 0.5 * (worst if weights is None else worst * weights).sum()
    return loss, {
        "value_loss": loss.detach(),
        "value_error": plain.detach().sum(),
        "value_clipfrac": (worst > plain).float().sum(),
    }
