"""Batched sampling with a KV cache: rows leave when they end, and waiting prompts take their places.

A completion is a function of the weights, its prompt, its row seed and the sampling settings. Batch size,
order and neighbours change no random number (`engine.draw`), and on the CPU no bit of the logits either:
float32 kernels round by shape, so the shapes a row meets are kept from depending on its neighbours
(`ROW_BLOCK`, `PROMPT_WIDTH`, `KEY_WIDTH`); bfloat16 products accumulate in float32 in one order. On a GPU,
where that is out of reach, a draw that falls within rounding of a boundary can come out differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhfkit.engine.draw import Sampling, draw, uniforms
from rlhfkit.errors import RlhfkitError
from rlhfkit.models.cache import KVCache
from rlhfkit.models.transformer import Transformer

#: float32 products on the CPU take another path, and round otherwise, for rows that do not fill a block of
#: four. The last block is filled up with copies, so that a prompt alone gets the same bits as in company.
ROW_BLOCK = 4
#: Prompts are padded to a multiple of this, and read together only with others of the same width.
PROMPT_WIDTH = 16
#: Decoding looks at a multiple of this many keys, the surplus masked: then more of them change no bit. The
#: cache grows by as many.
KEY_WIDTH = 64
#: Prompt tokens read in one forward pass.
PREFILL_TOKENS = 8192
#: Bytes of keys and values on the CPU; a GPU gives a quarter of what is free.
CACHE_BYTES = 512 * 2**20
MAX_ROWS = 256


@dataclass
class Generated:
    """One completion: the tokens that were drawn, an end token or stop string included."""

    ids: list[int] = field(default_factory=list)
    #: of each token under softmax(logits / temperature), see `draw`
    logprobs: list[float] = field(default_factory=list)
    #: "stop" (an end token or `stop`), "length" (max_new_tokens); "" while growing
    finish_reason: str = ""


@dataclass
class _Row:
    """A completion in the making."""

    index: int  # of its prompt in the caller's list
    seed: int
    out: Generated = field(default_factory=Generated)


@dataclass(frozen=True)
class _Job:
    """What stays the same while one call of `generate` runs."""

    model: Transformer
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    stop: Callable[[list[int]], bool] | None
    max_rows: int
    longest: int  # tokens of the longest prompt and its completion

    def width(self, row: _Row) -> int:
        """How wide the row's prompt is read; nothing but the prompt decides it."""
        return min(_up(len(self.prompts[row.index]), PROMPT_WIDTH), self.model.config.max_seq_len)


@dataclass
class _Group:
    """Rows that decode together. Ended rows stay, unread, until the next regrouping."""

    rows: list[_Row]
    last: Tensor  # (B,) the tokens drawn last; B >= len(rows), the rest are copies of the first row
    seeds: Tensor  # (B,)
    cache: KVCache
    longest: int  # tokens in the fullest row of the cache


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],  # token ids, none empty; equal prompts are read once
    row_seeds: Sequence[int],  # one a prompt, see `row_seed`
    sampling: Sampling,
    *,
    stop: Callable[[list[int]], bool] | None = None,  # new ids of a row -> it ends here
    max_rows: int | None = None,  # decoded at once; None = what the cache's memory allows
) -> list[Generated]:
    """Complete every prompt; results in the order of the prompts.

    Prompt and completion must fit the model's context: the caller has checked. Raises RlhfkitError when
    the logits are not finite.
    """
    assert all(prompts), "a prompt has at least one token"
    longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
    assert longest <= model.config.max_seq_len, "prompt and completion do not fit the context"
    max_rows = max_rows or _affordable_rows(model, _up(longest, KEY_WIDTH))
    job = _Job(model, prompts, sampling, stop, max_rows, longest)
    rows = [_Row(index, seed) for index, seed in enumerate(row_seeds)]
    # taken from the end: widest prompts first, equal prompts next to each other
    waiting = sorted(rows, key=lambda row: (job.width(row), list(prompts[row.index]), -row.index))
    group: _Group | None = None
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.prepacked():
            while waiting or group:
                group = _regroup(job, waiting, group)
                while group and not _due(job, group):
                    _decode(job, group)
    finally:
        model.train(training)
    return [row.out for row in rows]


def _affordable_rows(model: Transformer, capacity: int) -> int:
    """How many rows of `capacity` tokens the memory for keys and values holds."""
    config = model.config
    size = torch.float32.itemsize if model.device.type == "cpu" else model.dtype.itemsize
    row = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size * capacity
    memory = CACHE_BYTES
    if model.device.type == "cuda":
        memory = torch.cuda.mem_get_info(model.device)[0] // 4
    return max(1, min(MAX_ROWS, memory // max(1, row)))


def _due(job: _Job, group: _Group) -> bool:
    """Is it worth copying the cache to drop ended rows and let others in?"""
    ended = sum(row.out.finish_reason != "" for row in group.rows)
    # an ended row may not run over the end of the context
    return ended * 8 >= len(group.rows) or group.longest >= job.longest


def _regroup(job: _Job, waiting: list[_Row], group: _Group | None) -> _Group | None:
    """Drop ended rows, read waiting prompts into the free places; None when nothing goes on."""
    parts: list[tuple[KVCache, list[int]]] = []  # caches and which of their rows go on
    rows: list[_Row] = []
    if group:
        kept = [place for place, row in enumerate(group.rows) if not row.out.finish_reason]
        parts.append((group.cache, kept))
        rows += [group.rows[place] for place in kept]
    while waiting and len(rows) < job.max_rows:
        fresh, cache, places = _prefill(job, waiting, job.max_rows - len(rows))
        parts.append((cache, places))
        rows += fresh
    parts = [(cache, places) for cache, places in parts if places]
    if not rows:
        return None
    copies = _missing_rows(job.model, len(rows))
    parts.append((parts[0][0], parts[0][1][:1] * copies))
    everyone = rows + rows[:1] * copies
    device = job.model.device
    longest = max(len(job.prompts[row.index]) + len(row.out.ids) - 1 for row in rows)
    return _Group(
        rows,
        last=torch.tensor([row.out.ids[-1] for row in everyone], device=device),
        seeds=torch.tensor([row.seed for row in everyone], device=device),
        cache=_joined(job.model, parts, _up(longest + 1, KEY_WIDTH)),
        longest=longest,
    )


def _prefill(job: _Job, waiting: list[_Row], room: int) -> tuple[list[_Row], KVCache, list[int]]:
    """Read up to `room` waiting rows' prompts, each distinct one once, and draw first tokens.

    Returns the rows that go on, the cache of the distinct prompts, and each row's place in it.
    """
    model, device = job.model, job.model.device
    width = job.width(waiting[-1])
    distinct: list[list[int]] = []
    rows: list[_Row] = []
    places: list[int] = []
    while waiting and len(rows) < room and job.width(waiting[-1]) == width:
        prompt = list(job.prompts[waiting[-1].index])
        if not distinct or prompt != distinct[-1]:
            if distinct and (len(distinct) + 1) * width > PREFILL_TOKENS:
                break
            distinct.append(prompt)
        rows.append(waiting.pop())
        places.append(len(distinct) - 1)

    lengths = torch.tensor([len(prompt) for prompt in distinct], device=device)
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in distinct], device=device)
    mask = torch.arange(width, device=device) < lengths[:, None]  # (U, S)
    cache = model.new_cache(len(distinct), width)
    hidden = model.hidden(ids, attention_mask=mask, cache=cache)  # (U, S, D)
    final = hidden[torch.arange(len(distinct), device=device), lengths - 1]  # (U, D)
    logits = _logits(model, final)[torch.tensor(places, device=device)]  # (B, V)
    seeds = torch.tensor([row.seed for row in rows], device=device)
    _record(job, rows, *draw(logits, uniforms(seeds, torch.zeros_like(seeds)), job.sampling))
    going = [(row, place) for row, place in zip(rows, places, strict=True) if not row.out.finish_reason]
    return [row for row, _ in going], cache, [place for _, place in going]


def _decode(job: _Job, group: _Group) -> None:
    """Draw one more token for every row."""
    if group.longest == group.cache.max_seq_len:
        group.cache.grow(group.longest + KEY_WIDTH)
    hidden = job.model.hidden(group.last[:, None], cache=group.cache)[:, 0]  # (B, D)
    steps = [len(row.out.ids) for row in group.rows]
    steps += steps[:1] * (len(group.last) - len(steps))
    u = uniforms(group.seeds, torch.tensor(steps, device=group.seeds.device))
    group.last, logprobs = draw(_logits(job.model, hidden), u, job.sampling)
    group.longest += 1
    _record(job, group.rows, group.last, logprobs)


def _record(job: _Job, rows: list[_Row], tokens: Tensor, logprobs: Tensor) -> None:
    """Write down what was drawn, (B,) each with B >= len(rows), and which rows it ends."""
    drawn = torch.stack([tokens.double(), logprobs.double()], 1).tolist()  # one transfer from the device
    for row, (token, logprob) in zip(rows, drawn, strict=False):
        out = row.out
        if out.finish_reason:
            continue
        if not math.isfinite(logprob):
            raise RlhfkitError("the model's logits are not finite (NaN or infinity)")
        out.ids.append(int(token))
        out.logprobs.append(logprob)
        if out.ids[-1] in job.sampling.eos_ids or (job.stop and job.stop(out.ids)):
            out.finish_reason = "stop"
        elif len(out.ids) == job.sampling.max_new_tokens:
            out.finish_reason = "length"


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _missing_rows(model: Transformer, rows: int) -> int:
    """How many rows short of full blocks, which only float32 on the CPU has."""
    return -rows % ROW_BLOCK if model.device.type == "cpu" and model.dtype == torch.float32 else 0


def _logits(model: Transformer, hidden: Tensor) -> Tensor:
    """Logits (B, V) of (B, D), computed on full blocks of rows."""
    missing = _missing_rows(model, len(hidden))
    if not missing:
        return model.head(hidden)
    return model.head(torch.nn.functional.pad(hidden, (0, 0, 0, missing)))[: len(hidden)]


def _joined(model: Transformer, parts: list[tuple[KVCache, list[int]]], capacity: int) -> KVCache:
    """A cache of the named rows of several caches, in order; rows may be named more than once."""
    chosen = [(cache, torch.tensor(rows, device=model.device, dtype=torch.long)) for cache, rows in parts]
    joined = model.new_cache(sum(len(rows) for _, rows in chosen), capacity)
    start = 0
    for cache, rows in chosen:
        end = start + len(rows)
        used = min(cache.used, capacity)  # what lies behind belonged to rows that have ended
        for new, old in zip(joined.keys + joined.values, cache.keys + cache.values, strict=True):
            new[start:end, :, :used] = old[rows, :, :used]
        start = end
    joined.start(torch.cat([cache.lengths[rows] for cache, rows in chosen]), capacity)
    return joined
