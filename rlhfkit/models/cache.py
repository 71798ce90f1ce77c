"""Keys and values of the tokens read so far, for decoding one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhfkit.models.config import ModelConfig


class KVCache:
    """Room for `max_seq_len` positions in each of B rows, filled from the left.

    Rows have their own lengths; a row's position is its slot. Per layer the tensors are (B, K, Smax, E), and
    decoding reads all slots, those behind a row's end with weight 0. The model fills it:
    `hidden(ids, cache=cache)` with an empty cache reads whole prompts, with a filled one a new token a row.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_seq_len: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (batch_size, config.num_kv_heads, max_seq_len, config.head_dim)
        # Zeros: a shorter row's weightless slots are still multiplied, and zero times NaN is NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.max_seq_len = max_seq_len
        #: tokens held by each row (B,)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        #: the longest row; slots from here on are free in all rows
        self.used = 0

    def write_prompt(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values (B, K, S, E) of whole prompts."""
        self.keys[layer][:, :, : k.shape[2]] = k
        self.values[layer][:, :, : v.shape[2]] = v

    def start(self, lengths: Tensor | None, length: int) -> None:
        """Prompts of `lengths` (B,), None = all `length`, have been written."""
        if lengths is None:
            self.lengths.fill_(length)
            self.used = length
            return
        self.lengths.copy_(lengths)
        self.used = int(lengths.max())

    def advance(self) -> None:
        """Every row has grown by one token."""
        self.lengths += 1
        self.used += 1

    def grow(self, max_seq_len: int) -> None:
        """Make room for longer rows.

        Products in bfloat16 copy keys that are a part of a longer tensor: a cache that is grown in steps and
        always read whole takes a third of the time of a long one (64 rows, 192 keys).
        """
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros((*old.shape[:2], max_seq_len, old.shape[3]))
                new[:, :, : self.max_seq_len] = old
                tensors[layer] = new
        self.max_seq_len = max_seq_len

    def select(self, rows: Tensor) -> None:
        """Go on with these rows (N,), in this order; a row may be dropped or appear several times."""
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros((len(rows), *old.shape[1:]))
                new[:, :, : self.used] = old[rows, :, : self.used]
                tensors[layer] = new
        self.lengths = self.lengths[rows]
        if len(rows) and self.used:
            self.used = int(self.lengths.max())

    def expand(self, copies: int) -> None:
        """Turn each row into `copies` equal neighbours: n samples of a prompt share its one reading."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        self.select(rows.repeat_interleave(copies))
