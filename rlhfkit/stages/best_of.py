"""Keep the best completion of every prompt, and say what best-of-n gains for how much KL.

Reads samples with several completions, scored already (`score` beside each) or with --by SCORER, and writes
each with its best `completion` and that one's `score`; other fields pass through, and `best_of` says among
how many it was the best.

Reports, for n = 1, 2, 4, ..., the score to expect from the best of n: the mean over all subsets of size n,
which is unbiased (Gao et al. 2022), beside the KL that choosing costs, ln n - (n - 1) / n nats. With --gold
FIELD, a second number beside each completion (another scorer's, say) is followed as well: it shows how far
the score can be trusted. --curve FILE keeps these figures for `plot`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhfkit.config import OUTPUT as OUTPUT_GROUP
from rlhfkit.config import FilterConfig, Inputs, option
from rlhfkit.context import reporter, warn
from rlhfkit.errors import DataError
from rlhfkit.scorers.config import SCORER, SCORER_HELP, ScorerConfig

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Record, Source
    from rlhfkit.data.records import Sample
    from rlhfkit.scorers import Scorer

INPUTS = Inputs("SAMPLES", "Samples: JSONL files, `-` or nothing for standard input.", kind="sample")
OUTPUT = "records"
EXAMPLES = (
    "rlhfkit sample prompts.jsonl -m sft -n 16 | rlhfkit best-of --by rm -o best.jsonl",
    "rlhfkit best-of scored.jsonl --gold gold --curve curve.json > best.jsonl",
)

CHOICE = "Choice"


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig, ScorerConfig):
    """Settings of `best-of`."""

    by: str | None = option(
        None, group=SCORER, metavar="SCORER", help=f"Score first; without, `score` is read. {SCORER_HELP}"
    )
    n: int | None = option(
        None, short="-n", group=CHOICE, minimum=1, metavar="N", help="Choose among the first N only."
    )
    gold: str | None = option(
        None, group=CHOICE, metavar="FIELD", help="Another number beside each completion to follow."
    )
    curve: str | None = option(
        None,
        group=OUTPUT_GROUP,
        metavar="FILE",
        shapes_result=False,
        help="Keep the figures in this JSON file.",
    )
    batch_size: int = option(
        64, group=OUTPUT_GROUP, minimum=1, metavar="RECORDS", help="Records scored and written together."
    )


@dataclass
class _Curve:
    """Sums over prompts of the expected score, by n; memory does not grow with the input."""

    prompts: int = 0
    sums: dict[tuple[str, int], tuple[int, float, float]] = field(default_factory=dict)

    def add(self, scores: list[float], gold: list[float] | None) -> None:
        """Take the scores of one prompt's completions."""
        from rlhfkit.objectives.kl import best_of_n_expected

        self.prompts += 1
        for n in _sizes(len(scores)):
            for kind, values in (("score", scores), ("gold", gold)):
                if values is not None:
                    value = best_of_n_expected(scores, values, n)
                    count, total, squares = self.sums.get((kind, n), (0, 0.0, 0.0))
                    self.sums[kind, n] = count + 1, total + value, squares + value * value

    def points(self) -> list[dict[str, Any]]:
        """A point for every n that all prompts have."""
        from rlhfkit.objectives.kl import best_of_n_kl

        points: dict[int, dict[str, Any]] = {}
        for (kind, n), (count, total, squares) in sorted(self.sums.items(), key=lambda item: item[0][1]):
            if count == self.prompts:
                point = points.setdefault(n, {"n": n, "kl": best_of_n_kl(n)})
                mean = total / count
                variance = max(squares / count - mean * mean, 0.0)
                point[kind] = mean
                point[f"{kind}_se"] = math.sqrt(variance / (count - 1)) if count > 1 else None
        return list(points.values())


def _sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest` itself."""
    return [*(1 << i for i in range(largest.bit_length()) if 1 << i < largest), largest]


def run(inputs: Source, config: Config) -> Iterator[list[Record]]:
    """Yield the records with their best completions, a batch at a time and in order."""
    from rlhfkit.data.records import Sample, read_records
    from rlhfkit.files import check_output_file
    from rlhfkit.scorers import open_scorer

    if config.curve is not None:
        check_output_file(config.curve, force=config.force)
    curve = _Curve()
    reader = read_records(inputs, Sample, config)
    with ExitStack() as stack:
        progress = reporter().progress("best-of", None, "records")
        stack.callback(progress.close)
        scorer = None if config.by is None else stack.enter_context(open_scorer(config.by, config))
        for batch in reader.batches(config.batch_size):
            scores = _scores(batch, scorer, config, curve.prompts)
            yield [_best(sample, s, config, curve) for sample, s in zip(batch, scores, strict=True)]
            progress.update(curve.prompts)
    if curve.prompts:
        _report(curve, config)


def _scores(batch: list[Sample], scorer: Scorer | None, config: Config, first: int) -> list[list[float]]:
    """The scores of the completions to choose from, record by record."""
    from rlhfkit.scorers import Scorable

    if scorer is None:
        return [[_own_score(sample, i) for i in range(_count(sample, config))] for sample in batch]
    asked = [
        Scorable(place if sample.id is None else sample.id, sample.prompt, completion.turns)
        for place, sample in enumerate(batch, first)
        for completion in sample.completions[: config.n]
    ]
    scores = iter(scorer.score(asked))
    return [[next(scores) for _ in range(_count(sample, config))] for sample in batch]


def _count(sample: Sample, config: Config) -> int:
    return len(sample.completions[: config.n])


def _own_score(sample: Sample, index: int) -> float:
    score = sample.completions[index].score
    if score is None:
        raise DataError(
            f"sample.completions[{index}].score: missing",
            where=sample.where,
            hint="--by SCORER scores the completions first",
        )
    return score


def _best(sample: Sample, scores: list[float], config: Config, curve: _Curve) -> Record:
    curve.add(scores, None if config.gold is None else _gold(sample, len(scores), config.gold))
    best = max(range(len(scores)), key=lambda i: scores[i])  # the first of equals
    values = sample.row.values
    if sample.single:
        return {**sample.with_scores(scores), "best_of": 1}
    chosen: Any = values["completions"][best]
    if not isinstance(chosen, dict):
        chosen = {"text": chosen}
    text = chosen["text"] if chosen.get("text") is not None else chosen["messages"]
    rest = {name: value for name, value in chosen.items() if name not in ("text", "messages")}
    kept = {name: field for name, field in sample.fields.items() if name not in _OF_SEVERAL}
    record: Record = {**kept, "completion": text, **rest, "score": scores[best], "best_of": len(scores)}
    if isinstance(model := values.get("model"), str):  # choosing makes another policy of it
        record["model"] = f"{model} best of {len(scores)}"
    return record


_OF_SEVERAL = frozenset(("completions", "ranking", "ranks", "scores"))


def _gold(sample: Sample, count: int, name: str) -> list[float]:
    values = []
    for index, completion in enumerate(sample.completions[:count]):
        data = sample.row.values if sample.single else completion.data or {}
        value = data.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"sample.completions[{index}].{name}: expected a number", where=sample.where)
        values.append(float(value))
    return values


def _report(curve: _Curve, config: Config) -> None:
    points = curve.points()
    if len(points) < len({n for _, n in curve.sums}):
        warn(f"prompts have different numbers of completions: figures go up to n = {points[-1]['n']}")
    kinds = [kind for kind in ("score", "gold") if kind in points[0]]
    rows = [
        [str(p["n"]), f"{p['kl']:.3f}", *(_with_error(p[kind], p[f"{kind}_se"]) for kind in kinds)]
        for p in points
    ]
    title = f"best of n: means over {curve.prompts} prompts"
    reporter().table(title, ["n", "KL (nats)", *(f"{kind} (± 95%)" for kind in kinds)], rows)
    if config.curve is not None:
        from rlhfkit.data.jsonl import encode
        from rlhfkit.files import atomic_file

        document: dict[str, Any] = {"best_of": points, "prompts": curve.prompts, "scorer": config.by}
        with atomic_file(config.curve, force=config.force) as file:
            file.write(encode(document) + b"\n")


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:.4g}" if error is None else f"{mean:.4g} ± {1.96 * error:.2g}"
