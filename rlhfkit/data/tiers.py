"""Rankings as tiers: lists of indices, best first, ties in one tier; and the pairs they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal

from rlhfkit.data.jsonl import Row
from rlhfkit.data.shapes import Completion, bad, missing
from rlhfkit.data.strict import kind_of

Tiers = list[list[int]]


def tiers_field(
    row: Row, kind: str, completions: Sequence[Completion], rank_order: Literal["order", "ranks"] | None
) -> Tiers:
    """The ranking of a record, from `ranking`, `ranks` or a score on every completion.

    Raises DataError when there is none, one is bad, or two of them disagree.
    """
    sources: dict[str, Tiers] = {}
    values, count = row.values, len(completions)
    if values.get("ranking") is not None:
        sources["ranking"] = _from_ranking(row, f"{kind}.ranking", values["ranking"], count, rank_order)
    if values.get("ranks") is not None:
        sources["ranks"] = _from_ranks(row, f"{kind}.ranks", values["ranks"], count)
    scores = [completion.score for completion in completions]
    if None not in scores:
        sources["score"] = grouped(dict(enumerate(scores)), best_first=-1)  # type: ignore[arg-type]
    if not sources:
        raise missing(row, f"{kind}.ranking")
    (name, tiers), *others = sources.items()
    for other, its_tiers in others:
        if not agree(tiers, its_tiers):
            hint = f"keep one of them: {name} says {tiers}, {other} says {its_tiers}"
            raise bad(row, f"{kind}.{name}", f"disagrees with {other}", hint)
    return tiers


def _from_ranking(
    row: Row, path: str, value: object, count: int, rank_order: Literal["order", "ranks"] | None
) -> Tiers:
    if type(value) is not list:
        raise bad(row, path, f"expected a list of tiers, got {kind_of(value)}")
    if value and all(type(item) is int for item in value):
        if rank_order is None:
            hint = "--rank-order order (best first) or --rank-order ranks (the rank of each); or write tiers"
            raise bad(row, path, f"a flat list can mean an order or ranks: {str(value)[:60]}", hint)
        if rank_order == "ranks":
            return _from_ranks(row, path, value, count)
        value = [[index] for index in value]
    seen = set[int]()
    for place, tier in enumerate(value):
        if type(tier) is not list or not tier:
            got = "an empty list" if tier == [] else kind_of(tier)
            raise bad(row, f"{path}[{place}]", f"expected a list of indices, got {got}")
        for index in tier:
            if type(index) is not int:
                raise bad(row, f"{path}[{place}]", f"expected an index, got {kind_of(index)}")
            if not 0 <= index < count:
                raise bad(row, f"{path}[{place}]", f"index {index} is outside 0..{count - 1}")
            if index in seen:
                raise bad(row, f"{path}[{place}]", f"index {index} is named twice")
            seen.add(index)
    return value


def _from_ranks(row: Row, path: str, value: object, count: int) -> Tiers:
    if type(value) is not list:
        raise bad(row, path, f"expected a list of ranks, got {kind_of(value)}")
    if len(value) != count:
        raise bad(row, path, f"{len(value)} ranks for {count} completions")
    for index, rank in enumerate(value):
        if type(rank) is not int:
            raise bad(row, f"{path}[{index}]", f"expected a whole number from 1, got {kind_of(rank)}")
        if not 1 <= rank <= count:
            raise bad(row, f"{path}[{index}]", f"rank {rank} is outside 1..{count}")
    return grouped(dict(enumerate(value)), best_first=1)


def grouped(keys: Mapping[int, float], *, best_first: Literal[1, -1]) -> Tiers:
    """Tiers of indices by key: the smallest key first (1) or the largest (-1); equal keys are ties."""
    by_key: dict[float, list[int]] = {}
    for index, key in keys.items():
        by_key.setdefault(key, []).append(index)
    return [by_key[key] for key in sorted(by_key, reverse=best_first < 0)]


def agree(a: Tiers, b: Tiers) -> bool:
    """Whether two rankings order the indices that both hold in the same way."""
    common = {index for tier in a for index in tier} & {index for tier in b for index in tier}
    return _restricted(a, common) == _restricted(b, common)


def _restricted(tiers: Tiers, indices: set[int]) -> list[set[int]]:
    return [kept for tier in tiers if (kept := indices.intersection(tier))]


def untied_pairs(
    tiers: Tiers, which: Literal["all", "adjacent", "best-worst"] = "all"
) -> Iterator[tuple[int, int]]:
    """(better, worse) indices from different tiers, better tiers first.

    `adjacent` takes neighbouring tiers only, `best-worst` the first and the last.
    """
    of_tiers: Iterable[Sequence[list[int]]] = combinations(tiers, 2)
    if which == "adjacent":
        of_tiers = pairwise(tiers)
    elif which == "best-worst":
        of_tiers = [(tiers[0], tiers[-1])] if len(tiers) > 1 else []
    for better, worse in of_tiers:
        for chosen in better:
            for rejected in worse:
                yield chosen, rejected


def count_untied_pairs(tiers: Tiers) -> int:
    """How many pairs `untied_pairs` gives: (n^2 - sum of t^2) / 2 for tiers of sizes t."""
    total = sum(map(len, tiers))
    return (total * total - sum(len(tier) ** 2 for tier in tiers)) // 2
