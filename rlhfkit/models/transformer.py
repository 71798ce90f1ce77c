"""The decoder: one file for all families, whose differences are switches in `ModelConfig`.

Shape letters: B batch, S tokens in a row, V vocabulary, D hidden, H heads, K kv-heads, E head dim, F inner
width. Rows are padded on the right inside rlhfkit; what stands behind a row's end is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhfkit.models.attention import Plan, Step, attend, attend_to_cache, by_products, plan_prefill, plan_step
from rlhfkit.models.cache import KVCache
from rlhfkit.models.config import ModelConfig, Rope
from rlhfkit.models.layout import Layout
from rlhfkit.models.norms import rms_norm
from rlhfkit.models.processor import fast_bfloat16, multiply, prepacked
from rlhfkit.models.rope import Rotary, rotate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}

#: cosines and sines, each (B|1, S, 1, R/2)
Turns = tuple[Tensor, Tensor]


class _NoMetaInit:
    """Mixed into torch's layers: initialising what has no memory imports sympy and takes a second."""

    def reset_parameters(self) -> None:
        """Do nothing on the meta device, where the weights are about to be loaded."""
        if not self.weight.is_meta:  # type: ignore[attr-defined]
            super().reset_parameters()  # type: ignore[misc]


class Linear(_NoMetaInit, nn.Linear):
    """torch's layer, which may hold its weight a second time in a layout that suits few rows."""

    #: made by `Transformer.prepacked`, used without gradients only
    packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) times the weight, plus the bias: (..., N)."""
        if self.packed is not None:
            return multiply(x, self.packed, self.bias)
        return F.linear(x, self.weight, self.bias)


class Embedding(_NoMetaInit, nn.Embedding):
    """torch's layer."""


class RMSNorm(nn.Module):
    """Divide by the root mean square and scale (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 0.0 if config.norm_plus_one else 1.0))
        self.eps = config.norm_eps
        self.plus_one = config.norm_plus_one

    def forward(self, x: Tensor) -> Tensor:
        """Normed `x` (..., size)."""
        if self.plus_one:
            # Gemma scales before it leaves float32.
            return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).type_as(x)
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(_NoMetaInit, nn.LayerNorm):
    """Subtract the mean, divide by the deviation, scale and shift."""

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__(size, eps=config.norm_eps)


def _norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    return (RMSNorm if config.norm == "rms" else LayerNorm)(size or config.hidden_size, config)


class Attention(nn.Module):
    """Causal self-attention with grouped keys; q, k and v come from one product."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.sliding = config.slides(layer)
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        if config.attention_scale_by_layer:
            self.scale /= layer + 1
        self.softcap = config.attention_softcap
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.out = Linear(self.heads * self.head_dim, config.hidden_size, bias=config.out_bias)
        self.q_norm = _norm(config, self.head_dim) if config.qk_norm else None
        self.k_norm = _norm(config, self.head_dim) if config.qk_norm else None

    def forward(
        self, x: Tensor, turns: Turns | None, plan: Plan, cache: KVCache | None, keep: Tensor | None = None
    ) -> Tensor:
        """Mix the rows of `x` (B, S, D) along S; with `keep` (N,) only those of the B * S places, (N, D)."""
        qk, v = (heads.transpose(1, 2) for heads in self._heads(x, turns))
        q, k = qk[:, : self.heads], qk[:, self.heads :]  # (B, H, S, E), (B, K, S, E)
        if cache is not None:
            cache.write_prompt(self.layer, k, v)
        mask = plan.sliding if self.sliding else plan.full
        mixed = attend(q, k, v, mask=mask, scale=self.scale, softcap=self.softcap)
        rows = mixed.transpose(1, 2).flatten(2)
        out: Tensor = self.out(rows if keep is None else rows.flatten(0, 1)[keep])
        return out

    def step(self, x: Tensor, turns: Turns | None, step: Step, keys: Tensor, values: Tensor) -> Tensor:
        """Mix one new token a row, `x` (B, 1, D), with the cache (B, K, L, E), into which it goes."""
        qk, v = self._heads(x, turns)
        keys[step.rows, :, step.slots] = qk[:, 0, self.heads :].to(keys.dtype)
        values[step.rows, :, step.slots] = v[:, 0].to(values.dtype)
        bias = step.sliding if self.sliding else step.full
        q = qk[:, 0, : self.heads]
        mixed = attend_to_cache(q, keys, values, bias=bias, scale=self.scale, softcap=self.softcap)
        out: Tensor = self.out(mixed.flatten(1)[:, None])
        return out

    def _heads(self, x: Tensor, turns: Turns | None) -> tuple[Tensor, Tensor]:
        """Turned queries and keys (B, S, H + K, E), and values (B, S, K, E)."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # (B, S, H + 2K, E)
        qk, v = heads[:, :, : self.heads + self.kv_heads], heads[:, :, self.heads + self.kv_heads :]
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat([self.q_norm(qk[:, :, : self.heads]), self.k_norm(qk[:, :, self.heads :])], dim=2)
        return (qk if turns is None else rotate(qk, *turns)), v


class FeedForward(nn.Module):
    """Two layers with an activation between, gated (SwiGLU and kin) or not."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, f, bias = config.hidden_size, config.ffn_hidden_size, config.ffn_bias
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(d, f, bias=bias) if config.gated_ffn else None
        self.up = Linear(d, f, bias=bias)
        self.down = Linear(f, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Position by position, (B, S, D) to (B, S, D)."""
        up = self.up(x)
        inner = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        out: Tensor = self.down(inner)
        return out


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to what came in."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.attn_norm = _norm(config)
        self.attn = Attention(config, layer)
        self.attn_post_norm = _norm(config) if config.post_norms else nn.Identity()
        self.ffn_norm = _norm(config)
        self.ffn = FeedForward(config)
        self.ffn_post_norm = _norm(config) if config.post_norms else nn.Identity()

    def forward(
        self, x: Tensor, turns: Turns | None, plan: Plan, cache: KVCache | None, keep: Tensor | None = None
    ) -> Tensor:
        """(B, S, D) to (B, S, D), or with `keep` (N,) to those of the B * S places, (N, D)."""
        attended = self.attn(self.attn_norm(x), turns, plan, cache, keep)
        return self._feed(x if keep is None else x.flatten(0, 1)[keep], attended)

    def step(self, x: Tensor, turns: Turns | None, step: Step, keys: Tensor, values: Tensor) -> Tensor:
        """One new token a row: (B, 1, D) to (B, 1, D)."""
        return self._feed(x, self.attn.step(self.attn_norm(x), turns, step, keys, values))

    def _feed(self, x: Tensor, attended: Tensor) -> Tensor:
        mixed: Tensor = x + self.attn_post_norm(attended)
        before = x if self.parallel else mixed
        out: Tensor = mixed + self.ffn_post_norm(self.ffn(self.ffn_norm(before)))
        return out


class Transformer(nn.Module):
    """A causal language model; without its head (`with_head=False`) the backbone of a `ScalarModel`."""

    def __init__(self, config: ModelConfig, *, with_head: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.positions = None if config.rope else Embedding(config.max_seq_len, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = _norm(config)
        self.lm_head: Linear | None = None
        if with_head and not config.tie_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        #: how the model lay on disk; None for a fresh one
        self.layout: Layout | None = None
        self._packed_head: Tensor | None = None
        self._rotary = _rotary(config, config.rope)
        self._sliding_rotary = _rotary(config, config.sliding_rope)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def head_weight(self) -> Tensor:
        """The matrix (V, D) that turns hidden states into logits; the embedding itself when tied."""
        weight: Tensor = (self.embed if self.lm_head is None else self.lm_head).weight
        return weight

    @property
    def fills_rows(self) -> bool:
        """May sequences share rows, as trunk and branches or one behind the other, and does it pay?

        Not where positions are stretched by the length of a row or a window counts slots, and on a GPU there
        are kernels for rows of different lengths but none for such masks.
        """
        ropes = (self.config.rope, self.config.sliding_rope)
        stretched = any(rope is not None and rope.scaling == "dynamic" for rope in ropes)
        return self.device.type == "cpu" and not stretched and self.config.sliding_window is None

    def new_cache(self, batch_size: int, max_seq_len: int) -> KVCache:
        """An empty cache, in the dtype of the weights where products of single rows are fast in it."""
        slow = self.device.type == "cpu" and not fast_bfloat16()
        dtype = torch.float32 if slow else self.dtype
        return KVCache(self.config, batch_size, max_seq_len, dtype=dtype, device=self.device)

    @contextmanager
    def prepacked(self) -> Iterator[None]:
        """While in it, products use copies of the weights that suit few rows, where the CPU has such.

        Same bits, no gradients; the weights must not change meanwhile.
        """
        layers = [module for module in self.modules() if isinstance(module, Linear)]
        for layer in layers:
            layer.packed = prepacked(layer.weight)
        self._packed_head = prepacked(self.head_weight) if self.lm_head is None else self.lm_head.packed
        try:
            yield
        finally:
            self._packed_head = None
            for layer in layers:
                layer.packed = None

    def hidden(
        self,
        input_ids: Tensor,  # (B, S) int
        *,
        attention_mask: Tensor | None = None,  # (B, S) bool, padded on either side; None = all real
        position_ids: Tensor | None = None,  # (B, S) int; None = count the real tokens of a row
        cache: KVCache | None = None,
        segment_ids: Tensor | None = None,  # (B, S) int: tokens see only their own segment (packing)
        branch_ids: Tensor | None = None,  # (B, S) int: and of that only their own branch and the trunk, 0
        keep: Tensor | None = None,  # (N,) int: give the states of these of the B * S places only, (N, D)
    ) -> Tensor:
        """Normed states (B, S, D) before the head.

        With an empty `cache` the prompts (padded on the right) are read into it; with a filled one
        `input_ids` is the next token of each row (B, 1).
        """
        length = input_ids.shape[1]
        window = self.config.sliding_window
        decoding = cache is not None and cache.used > 0
        if cache is not None and decoding:
            assert length == 1, "one new token a row"
            assert cache.used < cache.max_seq_len, "the cache is full"
            x = self._step(input_ids, cache)
            cache.advance()
        else:
            key_mask = _unless_right_padded(attention_mask)
            assert cache is None or key_mask is None, "a cache is filled from rows padded on the right"
            positions = _positions(input_ids, position_ids, key_mask, segment_ids)
            row_lengths = _row_lengths(positions, attention_mask)
            products = self.config.attention_softcap is None and by_products(self.device, self.dtype, length)
            plan = plan_prefill(
                length,
                input_ids.device,
                key_mask=key_mask,
                segment_ids=segment_ids,
                branch_ids=branch_ids,
                window=window,
                additive=self.dtype if products else None,
            )
            x = self._run_layers(self._embed(input_ids, positions), positions, row_lengths, plan, cache, keep)
            if cache is not None:
                cache.start(None if attention_mask is None else attention_mask.sum(dim=1), length)
        out: Tensor = self.norm(x)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) in float32 of states (..., D), soft cap included."""
        if self._packed_head is not None:
            logits = multiply(hidden, self._packed_head, None).float()
        else:
            logits = F.linear(hidden, self.head_weight).float()
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Tensor) -> Tensor:
        """Logits (B, S, V) in float32; see `hidden` for the arguments."""
        return self.head(self.hidden(input_ids, attention_mask=attention_mask, **kwargs))  # type: ignore[arg-type]

    def _embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.embed(input_ids)
        if self.config.embedding_scale != 1.0:
            # Rounded to the weights' dtype first, as Gemma was trained.
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        if self.positions is not None:
            x = x + self.positions(positions)
        return x

    def _run_layers(
        self,
        x: Tensor,
        positions: Tensor,
        row_lengths: Tensor,
        plan: Plan,
        cache: KVCache | None,
        keep: Tensor | None,
    ) -> Tensor:
        last = len(self.layers) - 1
        every_turn = self._turns(positions, row_lengths, x.dtype)
        for number, (layer, turns) in enumerate(zip(self.layers, every_turn, strict=True)):
            # Prompts come in many widths: run hooks, but not what `layer.compile()` made, which would compile
            # again and again.
            run: Callable[..., Tensor] = layer if cache is None else layer._call_impl
            # Only the last layer's attention needs what stands elsewhere.
            x = run(x, turns, plan, cache, keep if number == last else None)
        return x

    def _step(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        positions = cache.lengths[:, None]
        step = plan_step(cache.lengths, cache.max_seq_len, window=self.config.sliding_window)
        x = self._embed(input_ids, positions)
        every_turn = self._turns(positions, positions + 1, x.dtype)
        for layer, turns, keys, values in zip(self.layers, every_turn, cache.keys, cache.values, strict=True):
            x = layer.step(x, turns, step, keys, values)  # type: ignore[operator]
        return x

    def _turns(self, positions: Tensor, row_lengths: Tensor, dtype: torch.dtype) -> list[Turns | None]:
        """Cosines and sines for every layer."""
        turns = self._rotary(positions, row_lengths, dtype) if self._rotary else None
        sliding = turns
        if self._sliding_rotary:
            sliding = self._sliding_rotary(positions, row_lengths, dtype)
        return [sliding if self.config.slides(i) else turns for i in range(len(self.layers))]


def _rotary(config: ModelConfig, rope: Rope | None) -> Rotary | None:
    return None if rope is None else Rotary(rope, config.head_dim, config.max_seq_len)


def _unless_right_padded(attention_mask: Tensor | None) -> Tensor | None:
    """The mask (B, S), or None if each row is real up to some point: then causality is enough."""
    if attention_mask is None:
        return None
    mask = attention_mask.bool()
    return mask if bool((mask[:, 1:] & ~mask[:, :-1]).any()) else None


def _positions(
    input_ids: Tensor, position_ids: Tensor | None, key_mask: Tensor | None, segment_ids: Tensor | None
) -> Tensor:
    """Positions (B|1, S): as given, or counted from the row's or the segment's first real token."""
    if position_ids is not None:
        return position_ids
    if key_mask is not None:
        return (key_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    index = torch.arange(input_ids.shape[1], device=input_ids.device)[None]  # (1, S)
    if segment_ids is not None:
        starts = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
        return index - torch.where(starts, index, 0).cummax(dim=1).values
    return index


def _row_lengths(positions: Tensor, attention_mask: Tensor | None) -> Tensor:
    """How many real tokens each row has (B|1, 1)."""
    if attention_mask is None:
        return positions.amax(dim=1, keepdim=True) + 1
    return attention_mask.long().sum(dim=1, keepdim=True)
