"""How far raters of the same completions agree: pairwise agreement, Kendall's tau, Krippendorff's alpha.

A rating gives every completion of an item a rank (1 = best, tied ones share their mean rank). A reward model
that ranked is a rater like any other.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np

from rlhfkit.evaluation.intervals import PromptMeans

Json = dict[str, object]
Ranks = Mapping[Hashable, float]


@dataclass(frozen=True, slots=True)
class Rating:
    """One rater's ranking of one item."""

    rater: str
    item: Hashable
    ranks: Ranks  # completion -> rank
    seconds: float | None = None


def mean_ranks(tiers: Sequence[Sequence[int]], completions: Sequence[Hashable]) -> dict[Hashable, float]:
    """Ranks from 1 by completion; tied ones share the mean of their places."""
    ranks: dict[Hashable, float] = {}
    place = 1
    for tier in tiers:
        for index in tier:
            ranks[completions[index]] = place + (len(tier) - 1) / 2
        place += len(tier)
    return ranks


def summarise_agreement(ratings: Iterable[Rating], *, draws: int, seed: int) -> Json:
    """Agreement of every two raters and of all together; of each rater with itself; time per item.

    Of several ratings of an item by one rater the last one counts; how they agree with one another is the
    rater's `self`.
    """
    held = list(ratings)
    latest: dict[str, dict[Hashable, Ranks]] = {}
    repeats: dict[str, list[tuple[Hashable, Ranks, Ranks]]] = {}
    for rating in held:
        items = latest.setdefault(rating.rater, {})
        if rating.item in items:
            repeats.setdefault(rating.rater, []).append((rating.item, items[rating.item], rating.ranks))
        items[rating.item] = rating.ranks
    pairs: list[Json] = []
    everything: list[tuple[Hashable, Ranks, Ranks]] = []
    for a, b in combinations(latest, 2):
        shared = [(item, latest[a][item], latest[b][item]) for item in latest[a] if item in latest[b]]
        if shared:
            figures = _figures(shared, np.random.default_rng(seed), draws)
            alpha = krippendorff_alpha(_units({a: latest[a], b: latest[b]}))
            pairs.append({"a": a, "b": b, **figures, "alpha": alpha})
            everything += shared
    raters: Json = {}
    for name, items in latest.items():
        seconds = [r.seconds for r in held if r.rater == name and r.seconds is not None]
        raters[name] = {
            "items": len(items),
            "median_seconds": median(seconds) if seconds else None,
            "self": _figures(repeats[name], np.random.default_rng(seed), draws) if name in repeats else None,
        }
    overall = _figures(everything, np.random.default_rng(seed), draws)
    return {
        "raters": raters,
        "pairs": pairs,
        "overall": {**overall, "alpha": krippendorff_alpha(_units(latest))},
    }


def _figures(shared: Sequence[tuple[Hashable, Ranks, Ranks]], rng: np.random.Generator, draws: int) -> Json:
    """Agreement over items rated twice, with a 95% interval from a bootstrap over items.

    `agreement` counts pairs of completions that both ratings order; `agreement_ties_half` counts all pairs:
    1 when the two say the same (a tie included), 0.5 when only one says a tie, 0 when they contradict.
    """
    numbers: dict[Hashable, int] = {}
    strict: list[tuple[int, float]] = []
    lenient: list[float] = []
    taus = []
    for item, one, two in shared:
        number = numbers.setdefault(item, len(numbers))
        for x, y in _orders(one, two):
            lenient.append(1 - abs(x - y) / 2)
            if x and y:
                strict.append((number, float(x == y)))
        if (tau := kendall_tau_b(one, two)) is not None:
            taus.append(tau)
    means = PromptMeans.of(
        np.array([value for _, value in strict], dtype=np.float64),
        np.array([number for number, _ in strict], dtype=np.int64),
    )
    low, high = means.interval(draws, rng)
    return {
        "items": len(numbers),
        "comparisons": len(strict),
        "agreement": _number(means.mean),
        "ci_low": _number(low),
        "ci_high": _number(high),
        "agreement_ties_half": sum(lenient) / len(lenient) if lenient else None,
        "tau_b": sum(taus) / len(taus) if taus else None,
    }


def _orders(one: Ranks, two: Ranks) -> Iterator[tuple[int, int]]:
    """For every two completions that both ranked: which comes first in each, as 1, -1 or 0 (tied)."""
    for a, b in combinations([c for c in one if c in two], 2):
        yield _sign(one[b] - one[a]), _sign(two[b] - two[a])


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def kendall_tau_b(one: Ranks, two: Ranks) -> float | None:
    """Kendall's tau-b of two rankings of the same completions; None when one of them ties everything."""
    same = ties_one = ties_two = pairs = 0
    for x, y in _orders(one, two):
        pairs += 1
        same += x * y
        ties_one += x == 0
        ties_two += y == 0
    scale = math.sqrt((pairs - ties_one) * (pairs - ties_two))
    return same / scale if scale else None


def _units(by_rater: Mapping[str, Mapping[Hashable, Ranks]]) -> list[list[float]]:
    """The ranks that each completion of each item got."""
    units: dict[tuple[Hashable, Hashable], list[float]] = {}
    for items in by_rater.values():
        for item, ranks in items.items():
            for completion, rank in ranks.items():
                units.setdefault((item, completion), []).append(rank)
    return list(units.values())


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for ordinal values (Krippendorff 2011, "Computing Krippendorff's alpha").

    A unit holds the values it was given; units with one value count nothing. None when no unit has two, or
    all values are equal.
    """
    usable = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in usable for value in unit})
    place = {value: i for i, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in usable:
        counts = np.bincount([place[value] for value in unit], minlength=len(values))
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=1)
    # The ordinal distance of two values: how many values lie between them, half of the ends included.
    upto = np.cumsum(totals) - totals / 2
    distance = (upto[:, None] - upto[None, :]) ** 2
    expected = float(totals @ distance @ totals)
    if expected == 0:
        return None
    observed = float((coincidences * distance).sum())
    return 1 - observed * float(totals.sum() - 1) / expected


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
