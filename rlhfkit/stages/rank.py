"""Rank the completions of every prompt, by a scorer or by people.

Reads samples, `{"prompt", "completions": [...]}` with at least two completions, and adds `ranking`: tiers of
indices, best first, completions of one tier tied. `rater` says who ranked. Other fields pass through.

People (--web: a page in the browser of this machine; --tty: this terminal) see 2 to 9 completions of a
prompt, anonymous and shuffled. Every decision is on the disk before the next item shows, in FILE.journal
beside the output or where --journal says; stopping loses nothing and the same command continues. The output
is written when the person has finished, and holds `seconds`, `shown_order`, `flags`, `ratings` and `note` as
well.

A scorer (--by) gives every completion the `score` that it is ranked by. Equal scores tie, scores within
--tie-margin of the best of a tier too, and completions with the same text always. With --noise TAU the scorer
plays a labeller who errs: scores get Gumbel noise of scale TAU, so that a is put before b with probability
1 / (1 + exp((score_b - score_a) / TAU)) (Plackett-Luce). The same seed gives every record the same noise,
wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhfkit.config import OUTPUT as OUTPUT_GROUP
from rlhfkit.config import FilterConfig, Inputs, option
from rlhfkit.context import note, reporter, warn
from rlhfkit.errors import DataError, UsageError
from rlhfkit.scorers.config import SCORER, SCORER_HELP, ScorerConfig

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Record, Source
    from rlhfkit.data.records import Sample
    from rlhfkit.scorers import Scorer

INPUTS = Inputs("SAMPLES", "Samples to rank: JSONL files, `-` or nothing for standard input.", kind="sample")
OUTPUT = "records"
EXAMPLES = (
    "rlhfkit rank samples.jsonl --by rm -o rankings.jsonl",
    "rlhfkit rank samples.jsonl --web --rater ann -o ann.jsonl",
    "rlhfkit rank samples.jsonl --by 'cmd:python gold.py' --noise 0.6 --seed 1 | rlhfkit rank2pairs",
)

RANKING = "Ranking"
PEOPLE = "People"


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig, ScorerConfig):
    """Settings of `rank`."""

    by: str | None = option(None, group=SCORER, metavar="SCORER", help=SCORER_HELP)
    tie_margin: float = option(
        0.0,
        group=RANKING,
        minimum=0,
        metavar="GAP",
        help="Scores at most this far below the best of a tier tie with it.",
    )
    noise: float = option(
        0.0,
        group=RANKING,
        minimum=0,
        metavar="TAU",
        help="Scale of the Gumbel noise added to scores (0: none).",
    )
    seed: int = option(
        1337,
        group=RANKING,
        minimum=0,
        maximum=2**63 - 1,
        help="Seed of the noise, or of the order in which people see completions.",
    )
    rater: str | None = option(
        None,
        group=RANKING,
        metavar="NAME",
        help="Who ranks, for `rater` (default: the scorer; the login name of a person).",
    )
    web: bool = option(False, group=PEOPLE, help="Rank on a page in a browser of this machine.")
    tty: bool = option(False, group=PEOPLE, help="Rank on this terminal, also while samples are piped in.")
    finish: bool = option(
        False,
        group=PEOPLE,
        help="Ask nothing; write the decisions made so far (of --rater, or of everybody).",
    )
    overlap: int | None = option(
        None,
        group=PEOPLE,
        minimum=0,
        metavar="N",
        help="Raters who share a journal all rank N of the items and one each of the rest (default: all).",
    )
    journal: str | None = option(
        None,
        group=PEOPLE,
        metavar="FILE",
        shapes_result=False,
        help="Where decisions are kept, line by line (default: OUTPUT.journal).",
    )
    port: int = option(
        0,
        group=PEOPLE,
        minimum=0,
        maximum=65535,
        metavar="PORT",
        shapes_result=False,
        help="Port of the page on 127.0.0.1 (0: any free one).",
    )
    browser: bool = option(True, group=PEOPLE, shapes_result=False, help="Open the page in a browser.")
    batch_size: int = option(
        64, group=OUTPUT_GROUP, minimum=1, metavar="RECORDS", help="Records ranked and written together."
    )


def run(inputs: Source, config: Config) -> Iterator[list[Record]]:
    """Yield the records with their rankings, a batch at a time and in order."""
    _check(config)
    if config.by is None:
        from rlhfkit.stages._people import rank_by_people

        return rank_by_people(inputs, config)
    return _rank_by_scorer(inputs, config.by, config)


def _check(config: Config) -> None:
    """Refuse settings that do not say who ranks, or belong to somebody else."""
    asked = config.by is not None, config.web, config.tty, config.finish
    ways = dict(zip(("--by", "--web", "--tty", "--finish"), asked, strict=True))
    chosen = [flag for flag, given in ways.items() if given]
    if not chosen:
        raise UsageError("how to rank?", where="--by", hint=f"--web or --tty: people. --by: {SCORER_HELP}")
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other", where=chosen[1])
    if config.by is None and (config.noise or config.tie_margin):
        raise UsageError("people bring their own noise and ties", where="--noise, --tie-margin")
    if config.web and config.quiet and not config.browser:
        raise UsageError("nobody would learn the address", where="--no-browser", hint="leave out --quiet")


def _rank_by_scorer(inputs: Source, by: str, config: Config) -> Iterator[list[Record]]:
    from rlhfkit.data.records import Sample, read_records
    from rlhfkit.scorers import open_scorer

    reader = read_records(inputs, Sample, config)
    progress = reporter().progress("rank", None, "records")
    count = _Count()
    try:
        with open_scorer(by, config) as scorer:
            for batch in reader.batches(config.batch_size):
                good, error = _rankable(batch, count, skip=config.on_bad_line == "skip")
                records = _rank(good, scorer, config, count)
                if records:
                    yield records
                if error is not None:
                    raise error
                progress.update(count.seen)
    finally:
        progress.close()
    if count.single:
        note(f"skipped {count.single} records with a single completion")
    if count.tied:
        warn(f"{count.tied} of {count.seen} rankings are one tie: they will make no pairs")


@dataclass
class _Count:
    seen: int = 0
    tied: int = 0
    single: int = 0


def _rankable(batch: list[Sample], count: _Count, *, skip: bool) -> tuple[list[Sample], DataError | None]:
    """The samples up to the first with a single completion, and its error; with `skip`, all the others."""
    good: list[Sample] = []
    for sample in batch:
        if len(sample.completions) > 1:
            good.append(sample)
        elif skip:
            count.single += 1
        else:
            return good, DataError(
                "sample.completions: one completion cannot be ranked",
                where=sample.where,
                hint="`sample -n 4` draws four for each prompt",
            )
    return good, None


def _rank(samples: list[Sample], scorer: Scorer, config: Config, count: _Count) -> list[Record]:
    from rlhfkit.scorers import Scorable, group_scores

    asked = [
        [
            Scorable(count.seen + place if sample.id is None else sample.id, sample.prompt, completion.turns)
            for completion in sample.completions
        ]
        for place, sample in enumerate(samples)
    ]
    records = []
    for sample, scores in zip(samples, group_scores(scorer, asked), strict=True):
        record = _with_ranking(sample, scores, config)
        record["rater"] = scorer.name if config.rater is None else config.rater
        records.append(record)
        count.seen += 1
        count.tied += len(record["ranking"]) == 1  # type: ignore[arg-type]
    return records


def _with_ranking(sample: Sample, scores: list[float], config: Config) -> Record:
    """The record with its `ranking` and the scores that it follows."""
    from rlhfkit.evaluation.ranking import first_equals, perturbed, tiers_of

    texts = [repr(completion.turns) for completion in sample.completions]
    if config.noise:
        scores = perturbed(scores, config.noise, config.seed, repr(sample.prompt), texts)
    scores = [scores[first] for first in first_equals(texts)]
    tiers = tiers_of(scores, config.tie_margin)
    record = sample.with_ranking(tiers)
    if tiers == tiers_of(scores):
        items = sample.row.values["completions"]
        record["completions"] = [_scored(item, score) for item, score in zip(items, scores, strict=True)]
    else:  # beside the completions they would contradict the ties
        record["scores"] = scores
    return record


def _scored(completion: Any, score: float) -> dict[str, Any]:
    """The completion with its score; another that it had is kept under another name."""
    if not isinstance(completion, dict):
        completion = {"text" if isinstance(completion, str) else "messages": completion}
    if completion.get("score") not in (None, score):
        completion = {("previous_score" if k == "score" else k): v for k, v in completion.items()}
    return {**completion, "score": score}
