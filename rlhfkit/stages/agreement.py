"""Say how far raters agree who ranked the same completions.

Reads rankings of several raters (`rater`, as `rank` writes it); records are of one item when they share `id`,
else `prompt`. A reward model's rankings, made with `rank --by`, can stand among those of people.

Prints one JSON object: for every two raters and for all together pairwise agreement (of two completions,
which is better) with a 95% interval from a bootstrap over items, Kendall's tau-b and Krippendorff's alpha
(ordinal); for every rater the number of items, the median seconds for one, and agreement with itself where
items were ranked twice.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhfkit.config import RUN, Inputs, RankingReadConfig, option
from rlhfkit.context import reporter, warn
from rlhfkit.errors import DataError

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Source
    from rlhfkit.data.records import Ranking
    from rlhfkit.evaluation.agreement import Rating

INPUTS = Inputs("RANKINGS", "Files of rankings (default: standard input).", kind="ranking")
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit agreement ann.jsonl ben.jsonl",
    "rlhfkit rank samples.jsonl --by rm --rater rm | rlhfkit agreement ann.jsonl -",
)

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config(RankingReadConfig):
    """Settings of `agreement`."""

    bootstrap: int = option(1000, group=RUN, minimum=0, metavar="N", help="Resamples for intervals.")
    seed: int = option(0, group=RUN, minimum=0, maximum=2**63 - 1, help="Seed of the bootstrap.")


def run(inputs: Source, config: Config) -> Json:
    """Return the summary."""
    from rlhfkit.data.records import Ranking, read_records
    from rlhfkit.evaluation.agreement import summarise_agreement

    ratings = list(_ratings(read_records(inputs, Ranking, config)))
    if not ratings:
        raise DataError("no rankings", hint="the input is empty")
    summary: Json = summarise_agreement(ratings, draws=config.bootstrap, seed=config.seed)
    if not summary["pairs"]:
        warn("no item was ranked by two raters: there is nothing to compare")
    _tell(summary)
    return summary


def _ratings(rankings: Iterable[Ranking]) -> Iterator[Rating]:
    from rlhfkit.evaluation.agreement import Rating, mean_ranks
    from rlhfkit.evaluation.matching import prompt_key

    for record in rankings:
        rater = record.row.values.get("rater")
        if not isinstance(rater, str):
            raise DataError(
                "ranking.rater: missing" if rater is None else "ranking.rater: expected a string",
                where=record.where,
                hint="--map rater=FIELD reads it from another field",
            )
        item: Hashable = prompt_key(record.prompt) if record.id is None else ("id", record.id)
        texts = [prompt_key(completion.turns) for completion in record.completions]
        seconds = record.row.values.get("seconds")
        yield Rating(
            rater,
            item,
            mean_ranks(record.tiers, texts),
            float(seconds) if isinstance(seconds, int | float) else None,
        )


def _tell(summary: Json) -> None:
    raters = [
        [
            name,
            str(r["items"]),
            _figure(r["median_seconds"], 1),
            _figure(None if r["self"] is None else r["self"]["agreement"]),
        ]
        for name, r in summary["raters"].items()
    ]
    reporter().table("raters", ["rater", "items", "median seconds", "self-agreement"], raters)
    rows = [_row(f"{pair['a']} and {pair['b']}", pair) for pair in summary["pairs"]]
    if len(rows) > 1:
        rows.append(_row("all", summary["overall"]))
    if rows:
        columns = ["raters", "items", "agreement", "95% interval", "ties half", "tau-b", "alpha"]
        reporter().table("agreement", columns, rows)


def _row(name: str, figures: Json) -> list[str]:
    interval = "-" if figures["ci_low"] is None else f"{figures['ci_low']:.3f} to {figures['ci_high']:.3f}"
    return [
        name,
        str(figures["items"]),
        _figure(figures["agreement"]),
        interval,
        _figure(figures["agreement_ties_half"]),
        _figure(figures["tau_b"]),
        _figure(figures["alpha"]),
    ]


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
