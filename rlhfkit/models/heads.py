"""The scalar head: a decoder that gives one number a token, for reward and value models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhfkit.models.cache import KVCache
from rlhfkit.models.config import ModelConfig
from rlhfkit.models.layout import Layout
from rlhfkit.models.transformer import Linear, Transformer


class ScalarModel(nn.Module):
    """A backbone and a linear head of one output; a reward model reads it at a row's last real token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Transformer(config, with_head=False)
        self.score = Linear(config.hidden_size, 1, bias=False)
        #: added to every score: how far centring shifted the reward model (transformers has no such thing)
        self.score_offset = 0.0
        #: how the model lay on disk
        self.layout: Layout | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    def new_cache(self, batch_size: int, max_seq_len: int) -> KVCache:
        """An empty cache for the backbone."""
        return self.backbone.new_cache(batch_size, max_seq_len)

    def token_scores(
        self,
        input_ids: Tensor,  # (B, S) int
        attention_mask: Tensor | None = None,  # (B, S) bool
        **kwargs: Tensor,
    ) -> Tensor:
        """One float32 number a token, (B, S); `kwargs` as for `Transformer.hidden`."""
        hidden = self.backbone.hidden(input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[arg-type]
        return self.read(hidden)

    def read(self, hidden: Tensor) -> Tensor:
        """The head alone: float32 numbers (...) of states (..., D)."""
        return F.linear(hidden, self.score.weight).squeeze(-1).float() + self.score_offset

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The score (B,) of each row, read at its last real token.

        Real is what the mask says and what is not the model's pad token: transformers looks only at the
        latter, so both agree for whatever a reward model is given.
        """
        last = last_real_token(input_ids, attention_mask, self.config.pad_token_id)
        places = torch.arange(len(last), device=last.device) * input_ids.shape[1] + last
        return self.read(self.backbone.hidden(input_ids, attention_mask=attention_mask, keep=places))


def last_real_token(input_ids: Tensor, attention_mask: Tensor | None, pad_token_id: int | None) -> Tensor:
    """Index (B,) of each row's last real token, whichever side the padding is on; 0 if there is none."""
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if pad_token_id is not None:
        real = real & (input_ids != pad_token_id)
    return (torch.arange(input_ids.shape[1], device=input_ids.device) * real).argmax(dim=1)
