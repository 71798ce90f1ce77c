"""One PPO iteration's arithmetic on episodes: rewards and advantages, then the updates.

Ouyang et al. (2022), section 3.5 and appendix C.4; details and their sources in docs/fidelity.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rlhfkit.engine.dist import Dist
from rlhfkit.engine.loop import Figures, Objective, Sums
from rlhfkit.engine.reward_scale import ScoreScale
from rlhfkit.engine.rollout import Episode, Piece, make_piece, over_tokens, read_logprobs, states
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.transformer import Transformer
from rlhfkit.objectives.common import explained_variance, whiten
from rlhfkit.objectives.kl import Estimator, token_kl
from rlhfkit.objectives.ppo import compute_rewards, gae, missing_eos, ppo_policy_loss, ppo_value_loss

#: A loss, and its metrics, of what a trunk made of some episodes.
Term = Callable[[Piece, Tensor], tuple[Tensor, Sums]]


@dataclass(frozen=True)
class Payment:
    """How a scorer's score becomes what the policy is paid."""

    missing_eos_penalty: float | None  # None: a response without EOS keeps its score
    missing_eos_mode: Literal["replace", "subtract"]
    reward_clip: float | None = None
    min_tokens: int = 0  # a response that ends sooner counts as one without EOS


def pay(episodes: Sequence[Episode], how: Payment, scale: ScoreScale | None = None) -> None:
    """Set `score` of every episode: the scorer's, scaled, clipped, then the missing-EOS rule (Ziegler, N+).

    That order is trlX's and TRL's. A clip bounds scaled scores; the penalty is neither scaled nor clipped.
    """
    scores = torch.tensor([e.scorer_score for e in episodes], dtype=torch.float64)
    if scale is not None:
        scores = (scores - scale.shift) / scale.divisor
    scores = scores.float()
    if how.reward_clip is not None:
        scores = scores.clamp(-how.reward_clip, how.reward_clip)
    if how.missing_eos_penalty is not None:
        ended = torch.tensor([e.ended and len(e.response_ids) >= how.min_tokens for e in episodes])
        scores = missing_eos(scores, ended, how.missing_eos_penalty, how.missing_eos_mode)
    for episode, score in zip(episodes, scores.tolist(), strict=True):
        episode.score = score


def set_advantages(
    episodes: Sequence[Episode],
    dist: Dist,
    *,
    kl_coef: float,
    gamma: float,
    gae_lambda: float,
    whiten_rewards: bool,
    kl_estimator: Estimator = "k1",
) -> None:
    """Per-token rewards, advantages and returns of a rollout; whitening spans all processes."""
    for episode in episodes:
        mask = torch.ones(1, len(episode.response_ids), dtype=torch.bool)
        score = torch.tensor([episode.score])
        rows = (episode.old_logprobs[None], episode.ref_logprobs[None])
        episode.rewards = compute_rewards(*rows, score, mask, kl_coef, kl_estimator)[0]
    if whiten_rewards:
        # Without shifting the mean, so that the meaning of "better than nothing" stays (Ziegler).
        over_tokens(episodes, lambda r, v, m: (whiten(r, m, shift_mean=False, reduce=dist.sum),), "rewards")
    over_tokens(episodes, lambda r, v, m: gae(r, v, m, gamma, gae_lambda), "advantages", "returns")


def scale_advantages(episodes: Sequence[Episode], dist: Dist, *, whitened: bool) -> None:
    """Set what the surrogate uses: the advantages, to mean 0 and variance 1 over these episodes if asked."""
    flat = torch.cat([torch.empty(0), *(e.advantages for e in episodes)])[None]  # (1, tokens)
    if whitened:
        flat = whiten(flat, torch.ones_like(flat, dtype=torch.bool), reduce=dist.sum)
    for episode, part in zip(
        episodes, torch.split(flat[0], [len(e.advantages) for e in episodes]), strict=True
    ):
        episode.scaled = part


LossMean: TypeAlias = Literal["tokens", "responses", "length"]


def weigh(episodes: Sequence[Episode], dist: Dist, mean: LossMean, max_new_tokens: int) -> None:
    """Set what a token of each episode of a minibatch weighs, so that the losses' token mean becomes `mean`.

    "tokens": every token alike (N+, TRL, OpenRLHF). "responses": the mean over responses of each one's own
    mean (OpenRLHF's option), where tokens of long answers weigh less. "length": the sum over batch size times
    `max_new_tokens`, whatever the lengths (Ziegler, AlpacaFarm), so that a batch of short answers moves less.
    """
    mine = {"tokens": float(sum(len(e.response_ids) for e in episodes)), "episodes": float(len(episodes))}
    total = dist.sum_dict(mine)
    per_response = total["tokens"] / max(total["episodes"], 1.0)
    for episode in episodes:
        size = max_new_tokens if mean == "length" else len(episode.response_ids)
        episode.weight = 1.0 if mean == "tokens" else per_response / size


def minibatch_plan(count: int, minibatches: int, seed: Sequence[int]) -> list[list[int]]:
    """A random partition of a rollout of `count` episodes: without replacement, so that none is skipped."""
    order = np.random.default_rng(list(seed)).permutation(count)
    return [sorted(part.tolist()) for part in np.array_split(order, minibatches) if len(part)]


@dataclass(frozen=True)
class Losses:
    """The settings of an update's two losses."""

    temperature: float
    clip_eps: float
    value_clip_eps: float | None
    value_coef: float


def ppo_objectives(
    policy: Transformer,
    value_model: ScalarModel,
    groups: Sequence[Sequence[Episode]],
    how: Losses,
    *,
    pad_id: int,
    device: torch.device,
    filled: bool = False,
) -> list[Objective]:
    """The clipped surrogate and the value loss of this process's share of a minibatch, over response tokens.

    A network of its own makes the value loss an objective of its own, so that one graph is alive at a time.
    A head on the policy's trunk reads the states that the policy's head reads: one forward pass, and the sum
    of both losses goes back through the trunk once.
    """

    def surrogate(piece: Piece, hidden: Tensor) -> tuple[Tensor, Sums]:
        logprobs, entropy = read_logprobs(policy, hidden, piece, how.temperature, with_entropy=True)
        old, advantages = piece.spread("old_logprobs"), piece.spread("scaled")
        mask, weights = piece.response_mask, piece.spread("weights")
        return ppo_policy_loss(
            logprobs, old, advantages, mask, clip_eps=how.clip_eps, entropy=entropy, weights=weights
        )

    def value_error(piece: Piece, hidden: Tensor) -> tuple[Tensor, Sums]:
        old, returns = piece.spread("values"), piece.spread("returns")
        mask, weights, eps = piece.response_mask, piece.spread("weights"), how.value_clip_eps
        values = piece.lay_out(value_model.read(hidden))
        return ppo_value_loss(values, old, returns, mask, value_clip_eps=eps, weights=weights)

    def both(piece: Piece, hidden: Tensor) -> tuple[Tensor, Sums]:
        loss, figures = surrogate(piece, hidden)
        error, further = value_error(piece, hidden)
        return loss + how.value_coef * error, {**figures, **further}

    weight = float(sum(len(e.response_ids) for group in groups for e in group))

    def objective(name: str, trunk: Transformer, term: Term, coef: float = 1.0) -> Objective:
        def loss_of(group: Sequence[Episode]) -> tuple[Tensor, Sums]:
            piece = make_piece(group, pad_id, device, filled=filled)
            return term(piece, states(trunk, piece))

        return Objective(name, [partial(loss_of, group) for group in groups], weight, coef)

    if value_model.backbone is policy:
        return [objective("ppo", policy, both)]
    return [
        objective("policy", policy, surrogate),
        objective("value", value_model.backbone, value_error, how.value_coef),
    ]


def rollout_figures(
    episodes: Sequence[Episode], dist: Dist, *, kl_coef: float, kl_estimator: Estimator = "k1"
) -> Figures:
    """What a rollout looked like, before any update; TRL's names where TRL has one. All masked."""
    names = ("n", "tokens", "score", "score2", "scorer", "k1", "k2", "k3", "k1_squared", "entropy", "eos")
    sums = dict.fromkeys(names, 0.0)
    for e in episodes:
        row = torch.ones(1, len(e.response_ids), dtype=torch.bool)
        for name in ("k1", "k2", "k3"):
            sums[name] += float(
                token_kl(e.old_logprobs[None], e.ref_logprobs[None], row, name).double().sum()
            )
        sums["k1_squared"] += float((e.old_logprobs - e.ref_logprobs).double().sum()) ** 2
        sums["n"] += 1
        sums["tokens"] += len(e.response_ids)
        sums["score"] += e.score
        sums["score2"] += e.score**2
        sums["scorer"] += e.scorer_score
        sums["entropy"] += float(e.entropy.sum())
        sums["eos"] += e.ended
    total = dist.sum_dict(sums)
    n, tokens = total["n"], total["tokens"]
    mean = total["score"] / n
    flat = {name: torch.cat([getattr(e, name) for e in episodes])[None] for name in ("values", "returns")}
    mask = torch.ones_like(flat["values"], dtype=torch.bool)
    explained = float(explained_variance(flat["values"], flat["returns"], mask, reduce=dist.sum))
    return {
        "objective/kl": total["k1"] / n,
        "objective/kl_se": math.sqrt(max(total["k1_squared"] / n - (total["k1"] / n) ** 2, 0.0) / n),
        "objective/kl_k2": total["k2"] / n,
        "objective/kl_k3": total["k3"] / n,
        "objective/kl_coef": kl_coef,
        "objective/entropy": total["entropy"] / n,
        "objective/non_score_reward": -kl_coef * total[kl_estimator] / n,
        "objective/rlhf_reward": mean - kl_coef * total[kl_estimator] / n,
        "objective/scores": mean,
        "objective/scores_std": math.sqrt(max(total["score2"] / n - mean**2, 0.0)),
        "objective/scorer": total["scorer"] / n,
        "val/explained_variance": explained,
        "val/num_eos_tokens": total["eos"],
        "response/length": tokens / n,
        "response/eos_rate": total["eos"] / n,
        "response/truncated": 1 - total["eos"] / n,
    }
