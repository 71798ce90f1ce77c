"""Rankings as tiers: lists of indices, best first, ties in one tier; and the pairs they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations, pairwise, product
from typing import Literal

from rlhfkit.data.jsonl import Row
from rlhfkit.data.shapes import Completion, bad, missing
from rlhfkit.data.strict import kind_of

Tiers = list[list[int]]


def tiers_field(
    row: Row,
    kind: str,
    count: int,
    completions: Sequence[Completion] | None,
    rank_order: Literal["order", "ranks"] | None,
) -> Tiers:
    """The ranking of a record of `count` completions, from `ranking`, `ranks` or their scores.

    Raises DataError when there is none, one is bad, or two of them disagree.
    """
    tiers = row.parts.get("ranking")
    alone = completions is None and "ranks" not in row.fields
    if alone and type(tiers) is list and tiers and type(tiers[0]) is list:  # the usual case, without detours
        return _from_ranking(row, f"{kind}.ranking", tiers, count, rank_order)
    ranking, ranks = row.value("ranking"), row.value("ranks")
    scores = all_scores(completions) if completions else {}
    sources: dict[str, Tiers] = {}
    if ranking is not None:
        sources["ranking"] = _from_ranking(row, f"{kind}.ranking", ranking, count, rank_order)
        if ranks is None and not scores:
            return sources["ranking"]
    if ranks is not None:
        sources["ranks"] = _from_ranks(row, f"{kind}.ranks", ranks, count)
    if scores:
        sources["score"] = grouped(scores, best_first=-1)
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
    if value and type(value[0]) is int and all(type(item) is int for item in value):
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


def all_scores(completions: Sequence[Completion]) -> dict[int, float]:
    """The score of every completion by index; empty unless each has one."""
    scores = {i: c.score for i, c in enumerate(completions) if c.score is not None}
    return scores if len(scores) == len(completions) else {}


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
) -> list[tuple[int, int]]:
    """(better, worse) indices from different tiers, better tiers first.

    `adjacent` takes neighbouring tiers only, `best-worst` the first and the last.
    """
    if which == "all" and len(order := list(chain.from_iterable(tiers))) == len(tiers):
        return list(combinations(order, 2))
    if which == "adjacent":
        of_tiers: Iterable[Sequence[list[int]]] = pairwise(tiers)
    elif which == "best-worst":
        of_tiers = [(tiers[0], tiers[-1])] if len(tiers) > 1 else []
    else:
        of_tiers = combinations(tiers, 2)
    return [pair for better, worse in of_tiers for pair in product(better, worse)]


def told_apart(pairs: list[tuple[int, int]], texts: Sequence[bytes]) -> tuple[list[tuple[int, int]], int]:
    """Those of `pairs` whose two texts differ, and how many do not. (Equal texts are equal as JSON.)"""
    # Different lengths are different texts; most of the time that settles it.
    if len(set(map(len, texts))) == len(texts):
        return pairs, 0
    different = [pair for pair in pairs if texts[pair[0]] != texts[pair[1]]]
    return different, len(pairs) - len(different)


def count_untied_pairs(tiers: Tiers) -> int:
    """How many pairs `untied_pairs` gives: (n^2 - sum of t^2) / 2 for tiers of sizes t."""
    total = sum(map(len, tiers))
    return (total * total - sum(len(tier) ** 2 for tier in tiers)) // 2
