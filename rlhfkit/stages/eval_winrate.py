"""Compare models by win rate against a baseline, with intervals that can be trusted.

Reads one file of samples per model, `{"prompt", "completion"}`, and lets a judge compare their answers to the
same prompts; or reads judgements made before, with --judgements. Records are matched by `id`, else by
prompt. A model's name is its records' `model`, else its file's name.

A scorer as judge scores every completion and the higher score wins, an equal one ties; a chat endpoint
compares the answers in both orders. A tie is half a win. Several completions of a prompt are several
comparisons, but one prompt: errors, intervals and tests count prompts.

Prints one JSON object: every model's win rate against the baseline with standard error and 95% interval
(bootstrap over prompts), counts, mean length in characters and, with --length-control, the win rate at equal
length; Bradley-Terry ratings, head-to-heads and paired tests. Rates are fractions from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from rlhfkit.config import RUN, FilterConfig, Inputs, option
from rlhfkit.context import reporter, warn
from rlhfkit.errors import DataError, UsageError
from rlhfkit.scorers.config import SCORER, SCORER_HELP, ScorerConfig

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Source
    from rlhfkit.data.records import Sample
    from rlhfkit.evaluation.judging import Columns
    from rlhfkit.evaluation.matching import Question

INPUTS = Inputs("SAMPLES", "Samples, a file per model; with --judgements, more judgements.", kind="sample")
INSTEAD_OF_INPUTS = ("judgements",)
INSTEAD_OF_INPUTS = ("judgements",)
OUTPUT = "summary"
EXAMPLES = (
    "rlhfkit eval-winrate sft.jsonl ppo.jsonl --judge rm --length-control",
    "rlhfkit eval-winrate sft.jsonl ppo.jsonl --judge 'cmd:python gold.py' --save-judgements judged.jsonl",
    "rlhfkit eval-winrate --judgements judged.jsonl --baseline sft --by category",
)

STATISTICS = "Statistics"

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config(FilterConfig, ScorerConfig):
    """Settings of `eval-winrate`."""

    judge: str | None = option(None, group=SCORER, metavar="SCORER", help=SCORER_HELP)
    judgements: tuple[str, ...] = option(
        (), group=SCORER, metavar="FILE", help="Judgements made before, instead of a judge."
    )
    save_judgements: str | None = option(
        None,
        group=SCORER,
        metavar="FILE",
        shapes_result=False,
        help="Keep every judgement in this JSONL file.",
    )
    canary: bool = option(
        False,
        group=SCORER,
        help="Also judge one constant answer to everything: a judge that likes it can be fooled.",
    )
    baseline: str | None = option(
        None, group=STATISTICS, metavar="NAME", help="Model to compare with (default: the first)."
    )
    name: tuple[str, ...] = option(
        (),
        group=STATISTICS,
        metavar="NAME",
        help="Names of the models, in the order of the files (repeatable).",
    )
    by: tuple[str, ...] = option(
        (),
        group=STATISTICS,
        metavar="FIELD",
        help="Win rates also by this field of the records (repeatable).",
    )
    length_control: bool = option(
        False, group=STATISTICS, help="Win rate at equal length, by the regression of AlpacaEval 2."
    )
    difficulty: bool = option(
        False,
        group=STATISTICS,
        help="With --length-control and many models: a term for how hard each prompt is.",
    )
    bootstrap: int = option(
        1000,
        group=STATISTICS,
        minimum=0,
        metavar="N",
        help="Resamples for intervals (0: Wilson intervals instead).",
    )
    ties: Literal["half", "drop"] = option(
        "half", group=STATISTICS, help="Bradley-Terry: a tie is half a win for each, or is left out."
    )
    prior: float | None = option(
        None,
        group=STATISTICS,
        above=0,
        metavar="N",
        help="Bradley-Terry: N half-won comparisons with an average model (default: 1 if need be).",
    )
    seed: int = option(0, group=RUN, minimum=0, maximum=2**63 - 1, help="Seed of the bootstrap.")
    dry_run: bool = option(
        False, group=RUN, shapes_result=False, help="Read and match, say what would be judged, ask no judge."
    )


def run(inputs: Source, config: Config) -> Json | None:
    """Return the summary; None when it was written to `output`."""
    from rlhfkit.evaluation.report import tell

    _check(inputs, config)
    if config.dry_run and config.judge is not None:
        return _plan(inputs, config)
    extra: Json = {}
    if config.judge is None:
        columns = _read_judgements(inputs, config)
    else:
        columns, extra = _judge(inputs, config)
    summary = _summarise(columns, config) | extra
    tell(summary)
    if config.output is None or config.output == "-":
        return summary
    from rlhfkit.data.jsonl import encode
    from rlhfkit.files import atomic_file

    with atomic_file(config.output, force=config.force) as file:
        file.write(encode(summary) + b"\n")
    return None


def _check(inputs: Source, config: Config) -> None:
    from rlhfkit.files import check_output_file

    if config.judge is not None and config.judgements:
        raise UsageError("cannot be used with --judgements", where="--judge")
    if config.judge is None and not config.judgements and _file_names(inputs):
        raise UsageError(
            "needs a judge or judgements",
            where="--judge",
            hint="--judge SCORER compares samples; --judgements FILE reads comparisons made before",
        )
    needs_judge = {
        "--canary": config.canary,
        "--save-judgements": config.save_judgements,
        "--name": config.name,
    }
    for flag, value in needs_judge.items():
        if value and config.judge is None:
            raise UsageError("needs --judge", where=flag)
    if config.difficulty and not config.length_control:
        raise UsageError("needs --length-control", where="--difficulty")
    for path in (config.output, config.save_judgements):
        if path is not None and path != "-":
            check_output_file(path, force=config.force)


def _file_names(inputs: Source) -> list[str]:
    """The names of the input files; none when the inputs are a Python caller's records."""
    return [item for item in inputs if isinstance(item, str)] if isinstance(inputs, Sequence) else []


# -- judgements read ---------------------------------------------------------------------------------------


def _read_judgements(inputs: Source, config: Config) -> Columns:
    from rlhfkit.data.records import Judgement, read_records
    from rlhfkit.evaluation.judging import Columns

    source = inputs
    if config.judgements:
        source = [*config.judgements, *_file_names(inputs)]
    columns = Columns(config.by)
    for batch in read_records(source, Judgement, config).batches():
        columns.add_records(batch)
    if not len(columns):
        raise DataError("no judgements", hint="the input is empty")
    if columns.of_itself:
        warn(f"{columns.of_itself} judgements compare a model with itself and say nothing")
    return columns


# -- samples judged ----------------------------------------------------------------------------------------


def _contestants(inputs: Source, config: Config) -> tuple[list[str], list[Question], list[tuple[str, str]]]:
    """Models with the baseline first, questions with their answers, and who meets whom."""
    from rlhfkit.evaluation.judging import CANARY_NAME, add_canary
    from rlhfkit.evaluation.matching import match

    models, questions = match(_named_samples(inputs, config))
    models = _baseline_first(models, config.baseline)
    _check_models(models, questions)
    pairs = list(combinations(models, 2))
    if config.canary:
        pairs.append((models[0], CANARY_NAME))
        add_canary(questions, models[0])
    return models, questions, pairs


def _plan(inputs: Source, config: Config) -> Json:
    """What a judge would be asked."""
    from rlhfkit.evaluation.matching import contests, unanswered

    models, questions, pairs = _contestants(inputs, config)
    plan: Json = {
        "baseline": models[0],
        "models": models,
        "prompts": len(questions),
        "completions": sum(len(a) for q in questions for a in q.answers.values()),
        "comparisons": sum(1 for q in questions for _ in contests(q, pairs)),
        "unanswered": unanswered(questions, models),
    }
    rows = [[name, ", ".join(v) if isinstance(v, list) else str(v)] for name, v in plan.items()]
    reporter().table(f"{config.judge} would judge", ["what", "value"], rows)
    return {"dry_run": True, **plan}


def _judge(inputs: Source, config: Config) -> tuple[Columns, Json]:
    from rlhfkit.data.jsonl import encode_lines
    from rlhfkit.evaluation.judging import CANARY_NAME, Columns, judge_questions
    from rlhfkit.evaluation.matching import unanswered
    from rlhfkit.files import atomic_file
    from rlhfkit.scorers import open_scorer

    models, questions, pairs = _contestants(inputs, config)
    columns, canary = Columns(config.by), Columns()
    with ExitStack() as stack:
        file = None
        if config.save_judgements is not None:
            file = stack.enter_context(atomic_file(config.save_judgements, force=config.force))
        scorer = stack.enter_context(open_scorer(str(config.judge), config))
        progress = reporter().progress("judge", len(questions), "prompts")
        stack.callback(progress.close)
        done = 0
        for batch in judge_questions(questions, pairs, scorer):
            real = [item for item in batch if item.contest[2] != CANARY_NAME]
            columns.add_judged(real)
            canary.add_judged(item for item in batch if item.contest[2] == CANARY_NAME)
            if file is not None:
                valid = [item for item in real if item.verdict.preference is not None]
                file.write(encode_lines([item.record(scorer.name) for item in valid]))
            done += len({id(item.question) for item in batch})
            progress.update(done)
    if not len(columns):
        raise DataError(f"no comparison has a valid verdict ({columns.invalid} invalid)", where="--judge")
    extra: Json = {
        "judge": scorer.name,
        "unanswered": unanswered(questions, models),
        "invalid": columns.invalid,
    }
    if len(canary):
        extra["canary"] = _rate_of_canary(canary, models[0], config)
    return columns, extra


def _named_samples(inputs: Source, config: Config) -> Iterator[tuple[str, Sample]]:
    """Every sample with the name of the model that wrote it."""
    from rlhfkit.data.records import Sample, read_records

    files = _file_names(inputs)
    if len(set(files)) < len(files):
        raise UsageError(f"{next(f for f in files if files.count(f) > 1)} is given twice")
    if config.name and len(config.name) != len(files):
        raise UsageError(f"{len(config.name)} names for {len(files)} files", where="--name")
    names = dict(zip(["<stdin>" if f == "-" else f for f in files], config.name, strict=False))
    for sample in read_records(inputs, Sample, config):
        source = sample.row.source
        name = names.get(source) or sample.row.values.get("model") or _stem(source)
        if not isinstance(name, str):
            raise DataError("sample.model: expected a string", where=sample.where)
        yield name, sample


def _stem(source: str) -> str:
    name = PurePath(source).name.removesuffix(".gz")
    for suffix in (".jsonl", ".json", ".ndjson"):
        name = name.removesuffix(suffix)
    return name.strip("<>")


def _baseline_first(models: list[str], baseline: str | None) -> list[str]:
    """The models with the baseline, which is the first unless named, in front."""
    if baseline is None:
        return models
    if baseline not in models:
        from rlhfkit.ui.flags import did_you_mean

        known = f"the models are {', '.join(models)}"
        raise UsageError(
            f"no model is called {baseline!r}",
            where="--baseline",
            hint=did_you_mean(baseline, models, otherwise=known),
        )
    return [baseline, *(model for model in models if model != baseline)]


def _check_models(models: list[str], questions: list[Question]) -> None:
    if not models:
        raise DataError("no samples", hint="the input is empty")
    if len(models) < 2:
        raise DataError(
            f"only one model: {models[0]}",
            hint="give a file of samples for each model; records of one file may name theirs in `model`",
        )
    for model in models[1:]:
        if not any(model in q.answers and models[0] in q.answers for q in questions):
            raise DataError(
                f"{model} and {models[0]} answer no prompt in common",
                hint="records are matched by `id` when all have one, else by prompt",
            )


# -- what comes out ----------------------------------------------------------------------------------------


def _summarise(columns: Columns, config: Config) -> Json:
    from rlhfkit.evaluation.winrate import Method, summarise

    judgements = columns.build()
    for field, missing in columns.missing.items():
        if missing == len(columns):
            raise UsageError(f"no record has a field {field!r}", where="--by")
    method = Method(
        draws=config.bootstrap,
        seed=config.seed,
        ties=config.ties,
        prior=config.prior,
        length_control=config.length_control,
        difficulty=config.difficulty,
    )
    return summarise(judgements, _baseline_first(list(judgements.models), config.baseline)[0], method)


def _rate_of_canary(columns: Columns, baseline: str, config: Config) -> Json:
    from rlhfkit.evaluation.judging import CANARY, CANARY_NAME
    from rlhfkit.evaluation.winrate import Method, summarise

    method = Method(draws=config.bootstrap, seed=config.seed)
    models: Json = summarise(columns.build(), baseline, method)["models"]
    return {"completion": CANARY, **models[CANARY_NAME]}
