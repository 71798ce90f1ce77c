"""Who may look at whom, and the looking itself: the only file that computes attention.

A `Plan` is built once per forward and shared by all layers. The common case, rows padded on the right or
not at all, needs no mask: a causal row never sees what comes behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Query rows and keys of one block of a decoding step, see `_weighted_by_blocks`.
ROW_BLOCK, KEY_BLOCK = 4, 128
#: Rows up to this long are attended to by matrix products where those are fast, see `by_products`.
PRODUCT_LENGTH = 512


@dataclass(frozen=True)
class Plan:
    """The two masks of one forward; None = every earlier position and itself.

    Either boolean, True = may look, or numbers to add to the scores (0 or minus infinity), which ask for
    attention by matrix products.
    """

    #: (B|1, 1, S, L) for layers that see everything
    full: Tensor | None = None
    #: (B|1, 1, S, L) for layers with a sliding window
    sliding: Tensor | None = None


def by_products(device: torch.device, dtype: torch.dtype, length: int) -> bool:
    """Is attention over rows of `length` faster as two batched matrix products than in torch's kernel?

    Measured on an AMD EPYC with bfloat16 instructions, forward and backward: twice as fast at 256 tokens,
    three times below 200, half again as fast at 512, slower at 1024; never in float32.
    """
    return device.type == "cpu" and dtype == torch.bfloat16 and length <= PRODUCT_LENGTH


def plan_prefill(
    length: int,
    device: torch.device,
    *,
    key_mask: Tensor | None,  # (B, S) bool; None where rows are padded on the right or not at all
    segment_ids: Tensor | None,  # (B, S) int: a token sees only its own segment
    branch_ids: Tensor | None = None,  # (B, S) int: and of that only its own branch and the trunk, 0
    window: int | None,
    additive: torch.dtype | None = None,  # masks in this dtype, for attention by matrix products
) -> Plan:
    """The plan for whole rows."""
    masked = key_mask is not None or segment_ids is not None or additive is not None
    if window is None or length <= window:
        window = None
        if not masked:
            return Plan()
    index = torch.arange(length, device=device)
    distance = index[:, None] - index[None, :]  # (S, S)
    full = (distance >= 0)[None, None]  # (1, 1, S, S)
    if segment_ids is not None:
        full = full & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    if branch_ids is not None:
        looking, seen = branch_ids[:, None, :, None], branch_ids[:, None, None, :]
        full = full & ((seen == 0) | (seen == looking))
    if key_mask is not None:
        # A padded query would see nothing, and a softmax over nothing is NaN: let it see itself.
        full = full & (key_mask[:, None, None, :] | (distance == 0)[None, None])
    sliding = full if window is None else full & (distance < window)[None, None]
    if additive is not None:
        full_numbers = _additive(full, additive)
        return Plan(full_numbers, full_numbers if sliding is full else _additive(sliding, additive))
    return Plan(full=full if masked else None, sliding=sliding)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


@dataclass(frozen=True)
class Step:
    """One new token a row against a cache of L slots: where it goes, and what it may look at."""

    rows: Tensor  # (B,) 0 .. B - 1
    slots: Tensor  # (B,) the slot of the new token
    #: (B, 1, L) to add to the scores, 0 or minus infinity, for layers that see everything
    full: Tensor
    #: the same for layers with a sliding window
    sliding: Tensor


def plan_step(lengths: Tensor, slots: int, *, window: int | None) -> Step:
    """The plan for one new token a row; `lengths` (B,) counts the tokens before it."""
    index = torch.arange(slots, device=lengths.device)
    after = (lengths[:, None] - index)[:, None]  # (B, 1, L): how far behind the new token a slot lies
    full = torch.zeros(after.shape, device=lengths.device).masked_fill_(after < 0, -torch.inf)
    sliding = full if window is None else full.masked_fill(after >= window, -torch.inf)
    return Step(torch.arange(len(lengths), device=lengths.device), lengths, full, sliding)


def attend(
    q: Tensor,  # (B, H, S, E)
    k: Tensor,  # (B, K, S, E)
    v: Tensor,  # (B, K, S, E)
    *,
    mask: Tensor | None,  # (B|1, 1, S, S) bool, or to add
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Weighted values (B, H, S, E) of whole rows, in the dtype of `q`."""
    if mask is not None and mask.dtype != torch.bool:
        return _attend_by_products(q, k, v, mask=mask, scale=scale)
    if softcap is not None:
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
        return _attend_with_softcap(q, k, v, mask=mask, scale=scale, softcap=softcap)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def attend_to_cache(
    q: Tensor,  # (B, H, E)
    keys: Tensor,  # (B, K, L, E)
    values: Tensor,  # (B, K, L, E)
    *,
    bias: Tensor,  # (B, 1, L), 0 or minus infinity
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Weighted values (B, H, E) for one new token a row, in the dtype of `q`; the softmax is in float32.

    The products are in the dtype of the keys, which are not repeated for grouped queries. For one query
    row this beats torch's CPU kernel, whose bfloat16 form takes up to eight times as long.
    """
    batch, heads, dim = q.shape
    rows = q.to(keys.dtype).view(batch, keys.shape[1], -1, dim)  # (B, K, H/K, E)
    if torch.compiler.is_compiling() and q.device.type == "cpu":
        # What the compiler makes one loop of, without a product of single rows.
        scores = (keys[:, :, None] * rows[:, :, :, None]).sum(-1, dtype=torch.float32)
    else:
        scores = (rows @ keys.transpose(2, 3)).float()
    scores = scores * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = (scores + bias[:, None]).softmax(dim=-1).to(values.dtype)
    if torch.compiler.is_compiling() and q.device.type == "cpu":
        out = (weights[..., None] * values[:, :, None]).sum(-2, dtype=torch.float32)
    elif values.device.type == "cpu" and values.dtype == torch.float32 and rows.shape[2] >= ROW_BLOCK:
        out = _weighted_by_blocks(weights, values)
    else:
        out = weights @ values
    return out.to(q.dtype).view(batch, heads, dim)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor, scale: float) -> Tensor:
    """Attention over whole rows as batched matrix products, scores and weights in the dtype of `q`."""
    batch, heads, length, dim = q.shape
    kv_heads, group = k.shape[1], heads // k.shape[1]
    # Head by head, as queries and keys lie in memory already: without grouped queries no copy is made.
    rows = q.view(batch, kv_heads, group, length, dim).transpose(0, 1)  # (K, B, G, S, E)
    rows = rows.reshape(kv_heads * batch, group * length, dim)
    keys, values = (x.transpose(0, 1).reshape(kv_heads * batch, length, dim) for x in (k, v))
    if len(mask) == 1:
        scores = torch.baddbmm(mask[0].repeat(1, group, 1), rows, keys.transpose(1, 2), alpha=scale)
    else:
        scores = (rows * scale) @ keys.transpose(1, 2)  # (K B, G S, S)
        scores = (scores.view(kv_heads, batch, group, length, length) + mask[None]).view_as(scores)
    mixed = (scores.softmax(dim=-1) @ values).view(kv_heads, batch, group, length, dim)
    return mixed.transpose(0, 1).flatten(1, 2)


def _attend_with_softcap(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    """Attention as two matrix products, softmax in float32; keys are not repeated for grouped queries."""
    batch, heads, length, dim = q.shape
    kv_heads = k.shape[1]
    rows = (q * scale).reshape(batch, kv_heads, heads // kv_heads * length, dim)
    scores = (rows @ k.transpose(2, 3)).float()  # (B, K, H/K * S, L)
    scores = softcap * torch.tanh(scores / softcap)
    split = scores.view(batch, kv_heads, heads // kv_heads, length, -1)
    scores = split.masked_fill(~mask[:, :, None], -torch.inf).view_as(scores)
    return (scores.softmax(dim=-1).to(v.dtype) @ v).view(batch, heads, length, dim)


def _weighted_by_blocks(weights: Tensor, v: Tensor) -> Tensor:
    """weights (B, K, R, L) @ v (B, K, L, E), summed block by block of keys.

    The CPU's float32 product of ROW_BLOCK rows or more splits a long sum by its length: further keys of
    weight 0, there for the sake of a longer row in the batch, would change how a row rounds.
    """
    out = weights[..., :KEY_BLOCK] @ v[:, :, :KEY_BLOCK]
    for start in range(KEY_BLOCK, v.shape[2], KEY_BLOCK):
        end = start + KEY_BLOCK
        out = out + weights[..., start:end] @ v[:, :, start:end]
    return out
