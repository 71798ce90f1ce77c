"""Rollouts: sample answers, score them, and measure what PPO needs of every response token.

An `Episode` is one prompt with its sampled response (a bandit with one decision per token). Per-token
quantities are kept as float32 vectors over the response tokens only, EOS included; `Piece` lays some
episodes out as target-aligned (B, T) tensors for a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhfkit.data.batching import Example, collate, collate_packed, fill_rows, micro_batches
from rlhfkit.data.shapes import Message
from rlhfkit.models.heads import ScalarModel
from rlhfkit.models.transformer import Transformer
from rlhfkit.objectives.logprobs import token_logprobs


@dataclass
class Episode:
    """One prompt, one sampled response, and what was measured of it."""

    number: int  # place in the global batch
    id: str | int  # what a scorer knows the prompt by
    prompt: str | list[Message]
    prompt_ids: list[int]
    response_ids: list[int]  # at least one; the last is EOS if the response ended by itself
    ended: bool
    text: str = ""
    scorer_score: float = 0.0  # as the scorer gave it
    score: float = 0.0  # what PPO is paid: clipped, and after the missing-EOS rule
    # (R,) float32 over the response tokens
    old_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))
    ref_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))
    entropy: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    scaled: Tensor = field(default_factory=lambda: torch.empty(0))  # advantages as the surrogate uses them
    returns: Tensor = field(default_factory=lambda: torch.empty(0))
    weight: float = 1.0  # of each of its tokens in an update's losses

    @property
    def weights(self) -> Tensor:
        """The weight of every response token (R,)."""
        return torch.full((len(self.response_ids),), self.weight)

    @property
    def ids(self) -> list[int]:
        """Prompt and response."""
        return self.prompt_ids + self.response_ids


@dataclass(frozen=True)
class Piece:
    """Some episodes as right-padded tensors."""

    episodes: Sequence[Episode]  # in the order in which their tokens stand, row by row
    input_ids: Tensor  # (B, S)
    attention_mask: Tensor  # (B, S) bool
    response_mask: Tensor  # (B, T) bool, T = S - 1, True where a response token is the target
    position_ids: Tensor | None = None  # (B, S), with the next where episodes share rows
    segment_ids: Tensor | None = None  # (B, S)

    def spread(self, name: str) -> Tensor:
        """A per-token quantity of the episodes as (B, T), 0 outside the response."""
        flat = torch.cat([getattr(episode, name) for episode in self.episodes])
        return self.lay_out(flat.to(self.response_mask.device))

    def lay_out(self, flat: Tensor) -> Tensor:
        """Numbers (N,) of the response tokens, row by row, as (B, T), 0 elsewhere."""
        return flat.new_zeros(self.response_mask.shape).masked_scatter(self.response_mask, flat)

    def keep(self, name: str, values: Tensor) -> None:
        """Store a (B, T) tensor with the episodes, response tokens only."""
        flat = values.detach().float()[self.response_mask].cpu()
        sizes = [len(episode.response_ids) for episode in self.episodes]
        for episode, part in zip(self.episodes, torch.split(flat, sizes), strict=True):
            setattr(episode, name, part)


def make_piece(
    episodes: Sequence[Episode], pad_id: int, device: torch.device, *, filled: bool = False
) -> Piece:
    """Lay episodes out as one batch; with `filled` they share rows where that makes fewer of them."""
    rows = fill_rows([len(e.ids) for e in episodes]) if filled else None
    if rows is not None:
        episodes = [episodes[i] for row in rows for i in row]
    examples = [Example(e.ids, [False] * len(e.prompt_ids) + [True] * len(e.response_ids)) for e in episodes]
    if rows is None:
        batch = collate(examples, pad_id, device)
    else:
        rest = iter(examples)
        batch = collate_packed([[next(rest) for _ in row] for row in rows], pad_id, device)
    return Piece(
        episodes,
        batch.input_ids,
        batch.attention_mask,
        batch.loss_mask,
        batch.position_ids,
        batch.segment_ids,
    )


def cut(
    episodes: Sequence[Episode], *, rows: int | None, tokens: int, filled: bool = False
) -> list[list[Episode]]:
    """Micro-batches of episodes of similar lengths."""
    groups = micro_batches([len(e.ids) for e in episodes], rows=rows, tokens=tokens, filled=filled)
    return [[episodes[i] for i in group] for group in groups]


def states(trunk: Transformer, piece: Piece) -> Tensor:
    """What the heads read: the states (N, D) before each response token, row by row."""
    keep = piece.response_mask.flatten().nonzero()[:, 0]
    if piece.segment_ids is None or piece.position_ids is None:
        return trunk.hidden(piece.input_ids[:, :-1], attention_mask=piece.attention_mask[:, :-1], keep=keep)
    return trunk.hidden(
        piece.input_ids[:, :-1],
        position_ids=piece.position_ids[:, :-1],
        segment_ids=piece.segment_ids[:, :-1],
        keep=keep,
    )


def read_logprobs(
    policy: Transformer, hidden: Tensor, piece: Piece, temperature: float, *, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (B, T) of the response tokens at the sampling temperature, and entropy on request.

    The head runs on response positions only; prompt and padding cost nothing beyond the trunk.
    """
    targets = piece.input_ids[:, 1:][piece.response_mask]
    logprobs, entropy = token_logprobs(
        hidden[None],
        policy.head,
        targets[None],
        torch.ones_like(targets[None], dtype=torch.bool),
        temperature=temperature,
        with_entropy=with_entropy,
    )
    return piece.lay_out(logprobs[0]), None if entropy is None else piece.lay_out(entropy[0])


@torch.no_grad()
def measure(
    groups: Sequence[Sequence[Episode]],
    *,
    policy: Transformer,
    ref_policy: Transformer,
    value_model: ScalarModel,
    temperature: float,
    pad_id: int,
    device: torch.device,
    filled: bool = False,
) -> None:
    """Old log-probs, entropy, reference log-probs and values of every episode.

    Values (V before response token t + 1 is chosen, read at token t) come from the policy's own forward
    pass when the value head sits on its trunk.

    `groups` must be the micro-batches of the first update: the same rows, padded alike, give the same
    bits, so that the ratio of the first minibatch is exactly 1.
    """
    for group in groups:
        piece = make_piece(group, pad_id, device, filled=filled)
        hidden = states(policy, piece)
        logprobs, entropy = read_logprobs(policy, hidden, piece, temperature, with_entropy=True)
        assert entropy is not None
        piece.keep("old_logprobs", logprobs)
        piece.keep("entropy", entropy)
        if value_model.backbone is not policy:
            hidden = states(value_model.backbone, piece)
        piece.keep("values", piece.lay_out(value_model.read(hidden)))
        hidden = states(ref_policy, piece)
        piece.keep("ref_logprobs", read_logprobs(ref_policy, hidden, piece, temperature)[0])


def over_tokens(
    episodes: Sequence[Episode], function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]], *names: str
) -> None:
    """Apply a (B, T) function of (rewards, values, mask) to all episodes and keep its results as `names`."""
    longest = max(len(e.response_ids) for e in episodes)
    shape = (len(episodes), longest)
    rewards, values = torch.zeros(shape), torch.zeros(shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, episode in enumerate(episodes):
        n = len(episode.response_ids)
        rewards[row, :n], values[row, :n], mask[row, :n] = episode.rewards, episode.values, True
    for name, result in zip(names, function(rewards, values, mask), strict=True):
        for row, episode in enumerate(episodes):
            setattr(episode, name, result[row, : len(episode.response_ids)].clone())
