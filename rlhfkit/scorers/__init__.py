"""Scorers: anything that puts a number on a completion, behind one small interface.

`open_scorer` turns the SCORER of a command line into one of them. Models, programs and endpoints are
imported when they are asked for, so this module is light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

from rlhfkit.errors import DataError, UsageError
from rlhfkit.scorers.config import ScorerConfig

if TYPE_CHECKING:
    from types import TracebackType

    from rlhfkit.data.shapes import Message

__all__ = [
    "Comparison",
    "PairJudge",
    "Scorable",
    "Scorer",
    "ScorerConfig",
    "Verdict",
    "group_scores",
    "model_kind",
    "open_scorer",
]


@dataclass(frozen=True, slots=True)
class Scorable:
    """One completion of one prompt. `id` names it in messages and is what a command sees."""

    id: str | int
    prompt: str | list[Message]
    completion: str | list[Message]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two completions of one prompt, to be compared."""

    id: str | int
    prompt: str | list[Message]
    a: str | list[Message]
    b: str | list[Message]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a comparison ended: 1 = a is better, 0 = b is, 0.5 = tie, None = no valid verdict.

    `a_first` and `b_first` are what a judge that was asked in both orders said with a, and with b,
    shown first (each again as a preference for a); a scorer has no order and leaves them None.
    """

    preference: float | None
    a_first: float | None = None
    b_first: float | None = None


class Scorer(Protocol):
    """Scores completions. A context manager: leaving it without an error also runs `finish`."""

    name: str

    def score(self, items: Sequence[Scorable]) -> list[float]:
        """One finite number per item, in order; higher is better. Raises RlhfkitError."""

    def finish(self) -> None:
        """Nothing more will be asked: raise if the whole cannot be trusted (extra answers, refusals)."""
        return

    def close(self) -> None:
        """Let go of processes and files. Never raises; may be called twice."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()


@runtime_checkable
class PairJudge(Scorer, Protocol):
    """A scorer that compares two completions better than it grades one."""

    def compare(self, items: Sequence[Comparison]) -> list[Verdict]:
        """One verdict per item, in order."""


def group_scores(scorer: Scorer, groups: Sequence[Sequence[Scorable]]) -> list[list[float]]:
    """Numbers that order the completions of each prompt, best highest.

    A judge compares every two of a group and a completion gets the sum of its preferences (an invalid
    verdict gives neither side anything); any other scorer just scores.
    """
    if not isinstance(scorer, PairJudge):
        scores = iter(scorer.score([item for group in groups for item in group]))
        return [[next(scores) for _ in group] for group in groups]
    duels = [(g, i, j) for g, group in enumerate(groups) for i, j in combinations(range(len(group)), 2)]
    verdicts = scorer.compare(
        [
            Comparison(groups[g][i].id, groups[g][i].prompt, groups[g][i].completion, groups[g][j].completion)
            for g, i, j in duels
        ]
    )
    sums = [[0.0] * len(group) for group in groups]
    for (g, i, j), verdict in zip(duels, verdicts, strict=True):
        if verdict.preference is not None:
            sums[g][i] += verdict.preference
            sums[g][j] += 1.0 - verdict.preference
    return sums


def open_scorer(spec: str, config: ScorerConfig | None = None) -> Scorer:
    """The scorer that `spec` names: DIR, rm:DIR, lm:DIR, cmd:COMMAND, http://... or https://...

    Raises UsageError for a spec that cannot be meant, InputMissing or DataError for a directory that
    is not there or holds another kind of model, RlhfkitError when a command cannot be started.
    """
    config = config or ScorerConfig()
    scheme, colon, rest = spec.partition(":")
    if colon and scheme == "cmd":
        from rlhfkit.scorers.command import CommandScorer

        return CommandScorer(rest, timeout=config.scorer_timeout, restarts=config.scorer_restarts)
    if colon and scheme in ("http", "https"):
        from rlhfkit.scorers.http import HttpJudge

        return HttpJudge(spec, config)
    if colon and scheme in ("rm", "lm"):
        return _open_model(Path(rest), scheme, config)
    if colon and scheme.isalpha() and not Path(spec).exists():
        raise UsageError(
            f"unknown scorer {spec!r}", hint="a scorer is DIR, rm:DIR, lm:DIR, cmd:COMMAND or http://..."
        )
    return _open_model(Path(spec), None, config)


def model_kind(directory: Path) -> Literal["rm", "lm"]:
    """Whether a model directory holds a reward model or a causal one, by its `architectures`.

    Looks at config.json alone, without torch; loading checks the rest.
    """
    from rlhfkit.models.directory import check_directory, read_json

    config = check_directory(directory) / "config.json"
    names = read_json(config).get("architectures")
    scalar = isinstance(names, list) and names[:1] and str(names[0]).endswith("ForSequenceClassification")
    return "rm" if scalar else "lm"


def _open_model(directory: Path, wanted: str | None, config: ScorerConfig) -> Scorer:
    from rlhfkit.models.hub import resolve

    directory = resolve(directory)
    kind = model_kind(directory)
    if kind == "lm" and wanted != "lm":
        raise DataError(
            "a causal language model, not a reward model",
            where=str(directory),
            hint=f"write lm:{directory} to score by log-probability, or name the output of train-rm",
        )
    if kind == "rm" and wanted == "lm":
        raise DataError(
            "a reward model, not a causal language model",
            where=str(directory),
            hint=f"write rm:{directory} to score with it",
        )
    if kind == "rm":
        from rlhfkit.scorers.reward_model import RewardModelScorer

        return RewardModelScorer(directory, config)
    from rlhfkit.scorers.language_model import LanguageModelScorer

    return LanguageModelScorer(directory, config)
