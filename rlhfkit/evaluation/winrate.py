"""Win rates from judgements: against a baseline, head to head, by group, and paired between models.

Everything is a fraction in 0..1 and a tie counts half. A judgement's preference may be any number between 0
and 1; above 0.5 it counts as a win, below as a loss, at 0.5 as a tie, as AlpacaEval counts.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np

from rlhfkit.evaluation.bradley_terry import fit_bradley_terry, sequential_elo
from rlhfkit.evaluation.intervals import Floats, Ints, PromptMeans, Z, t_test
from rlhfkit.evaluation.length_control import (
    LengthControl,
    length_control,
    length_feature,
    prompt_difficulty,
)

Json: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class Judgements:
    """Judgements in columns of n rows."""

    models: tuple[str, ...]  # names, in order of first appearance
    a: Ints  # (n,) number of model a
    b: Ints  # (n,)
    preference: Floats  # (n,) 1 = a is better, 0 = b is
    prompts: Ints  # (n,) equal numbers = one prompt
    length_a: Floats  # (n,) characters of a's completion; nan = not known
    length_b: Floats  # (n,)
    a_first: Floats  # (n,) what was said with a shown first, again as a preference for a; nan = never so
    b_first: Floats  # (n,) what was said with b shown first
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)  # field -> label of every row

    def of(self, model: int, other: int) -> Matchup:
        """The judgements of `model` against `other`, seen from `model`."""
        straight = (self.a == model) & (self.b == other)
        rows = np.flatnonzero(straight | ((self.a == other) & (self.b == model)))
        turn = ~straight[rows]
        flipped = np.where(turn, 1 - self.preference[rows], self.preference[rows])
        mine = np.where(turn, self.length_b[rows], self.length_a[rows])
        theirs = np.where(turn, self.length_a[rows], self.length_b[rows])
        return Matchup(rows, flipped, self.prompts[rows], mine, theirs)

    def mean_length(self, model: int) -> float | None:
        """Mean length in characters of a model's completions, over all judgements that show one."""
        lengths = np.concatenate([self.length_a[self.a == model], self.length_b[self.b == model]])
        return _number(float(lengths[~np.isnan(lengths)].mean())) if not np.isnan(lengths).all() else None


@dataclass(frozen=True, slots=True)
class Matchup:
    """Judgements of one model against another, in columns."""

    rows: Ints  # (n,) where they stand in the Judgements
    won: Floats  # (n,) preference for the model
    prompts: Ints  # (n,)
    length: Floats  # (n,) of the model's completion, nan = not known
    length_other: Floats  # (n,)

    def pick(self, keep: np.ndarray) -> Matchup:
        """The judgements where `keep` (n,) is True."""
        columns = (self.rows, self.won, self.prompts, self.length, self.length_other)
        return Matchup(*(column[keep] for column in columns))

    def turned(self) -> Matchup:
        """The same judgements, seen from the other model."""
        return Matchup(self.rows, 1 - self.won, self.prompts, self.length_other, self.length)

    def counts(self) -> Json:
        """Win rate with standard error, and how many judgements went which way."""
        means = PromptMeans.of(self.won, self.prompts)
        return {
            "win_rate": _number(means.mean),
            "standard_error": _number(means.standard_error),
            "n": len(self.won),
            "wins": int((self.won > 0.5).sum()),
            "losses": int((self.won < 0.5).sum()),
            "ties": int((self.won == 0.5).sum()),
        }

    def rate(self, draws: int, rng: np.random.Generator) -> Json:
        """`counts` with the ends of the 95% interval."""
        low, high = PromptMeans.of(self.won, self.prompts).interval(draws, rng)
        return {
            **self.counts(),
            "ci_low": _number(low),
            "ci_high": _number(high),
            "prompts": self.num_prompts,
        }

    @property
    def num_prompts(self) -> int:
        """Distinct prompts judged."""
        return len(np.unique(self.prompts))

    def measured(self) -> Matchup:
        """Those with both lengths known."""
        return self.pick(~np.isnan(self.length + self.length_other))


@dataclass(frozen=True, slots=True)
class Method:
    """How to summarise."""

    draws: int = 1000  # bootstrap resamples; 0 = Wilson intervals
    seed: int = 0
    ties: Literal["half", "drop"] = "half"  # of Bradley-Terry
    prior: float | None = None  # of Bradley-Terry; None = only where needed
    length_control: bool = False
    difficulty: bool = False  # length control with a term for hard prompts


def summarise(judgements: Judgements, baseline: str, method: Method) -> dict[str, Any]:
    """The summary of `eval-winrate`: see docs/commands/eval-winrate.md for every field.

    `baseline` must be one of the models. A figure that does not exist (the standard error of one prompt,
    the length of a completion that was not given) is None, never nan.
    """
    base = judgements.models.index(baseline)
    matchups = {m: judgements.of(i, base) for i, m in enumerate(judgements.models) if i != base}
    controls = _length_controls(matchups, method)
    models: Json = {}
    for i, name in enumerate(judgements.models):
        if i == base:
            rate: Json = {"win_rate": 0.5, "standard_error": 0.0, "n": 0, "wins": 0, "losses": 0, "ties": 0}
            rate |= {"ci_low": 0.5, "ci_high": 0.5, "prompts": 0}
        else:
            rate = matchups[name].rate(method.draws, _generator(method.seed, name))
        rate |= {"avg_length": judgements.mean_length(i), "length_controlled_winrate": None}
        if method.length_control and i == base:
            rate["length_controlled_winrate"] = 0.5
        if name in controls:
            rate["length_controlled_winrate"] = controls[name].win_rate
            rate["length_control"] = _length_control_json(controls[name], method)
        models[name] = rate
    summary: Json = {"baseline": baseline, "models": models} | _ratings(judgements, method)
    summary["head_to_head"] = head_to_head(judgements)
    summary["paired"] = paired_tests(judgements, base, matchups)
    bias = position_bias(judgements)
    if bias is not None:
        summary["position_bias"] = bias
    if judgements.groups:
        summary["by"] = {f: _by(labels, matchups, method) for f, labels in judgements.groups.items()}
    return summary


def head_to_head(judgements: Judgements) -> Json:
    """{A: {B: how A did against B}} for every pair of models that was judged."""
    matrix: dict[str, Json] = {name: {} for name in judgements.models}
    for i, j in combinations(range(len(judgements.models)), 2):
        matchup = judgements.of(i, j)
        if len(matchup.rows) == 0:
            continue
        a, b = judgements.models[i], judgements.models[j]
        matrix[a][b], matrix[b][a] = matchup.counts(), matchup.turned().counts()
    return dict(matrix)


def paired_tests(judgements: Judgements, base: int, matchups: Mapping[str, Matchup]) -> list[Json]:
    """For every two models, whether their win rates against the baseline differ, prompt by prompt.

    Only prompts on which both were judged count, each once; the baseline itself scores 0.5 on all of them.
    `p_value` is that of a two-sided t test of the mean difference.
    """
    by_prompt: list[tuple[Ints, Floats] | None] = []
    for i, name in enumerate(judgements.models):
        if i == base:
            by_prompt.append(None)
        else:
            numbers, index = np.unique(matchups[name].prompts, return_inverse=True)
            by_prompt.append((numbers, np.bincount(index, matchups[name].won) / np.bincount(index)))
    tests: list[Json] = []
    for i, j in combinations(range(len(judgements.models)), 2):
        difference = _paired_difference(by_prompt[i], by_prompt[j])
        if len(difference) == 0:
            continue
        means = PromptMeans(difference, np.ones(len(difference)))
        error = means.standard_error
        tests.append(
            {
                "a": judgements.models[i],
                "b": judgements.models[j],
                "difference": _number(means.mean),
                "standard_error": _number(error),
                "ci_low": _number(means.mean - Z * error),
                "ci_high": _number(means.mean + Z * error),
                "p_value": _number(t_test(means.mean, error, len(difference))),
                "prompts": len(difference),
            }
        )
    return tests


def _paired_difference(one: tuple[Ints, Floats] | None, two: tuple[Ints, Floats] | None) -> Floats:
    """Differences of the scores on shared prompts; None stands for the baseline, 0.5 everywhere."""
    if one is None:
        assert two is not None
        return 0.5 - two[1]
    if two is None:
        return one[1] - 0.5
    _, left, right = np.intersect1d(one[0], two[0], assume_unique=True, return_indices=True)
    return np.asarray(one[1][left] - two[1][right])


def position_bias(judgements: Judgements) -> Json | None:
    """How often the completion shown first won (0.5 = no bias), and how often swapping changed nothing.

    None when no judgement tells its order. Unless both orders were asked, a rate off 0.5 may also mean that
    the better model was shown first more often.
    """
    known_a, known_b = ~np.isnan(judgements.a_first), ~np.isnan(judgements.b_first)
    if not (known_a | known_b).any():
        return None
    first = np.concatenate([judgements.a_first[known_a], 1 - judgements.b_first[known_b]])
    prompts = np.concatenate([judgements.prompts[known_a], judgements.prompts[known_b]])
    means = PromptMeans.of(first, prompts)
    said_a, said_b = _both_orders(judgements)
    agree = np.sign(said_a - 0.5) == np.sign(said_b - 0.5)
    return {
        "first_win_rate": _number(means.mean),
        "standard_error": _number(means.standard_error),
        "n": len(first),
        "both_orders": len(agree),
        "consistent": float(agree.mean()) if len(agree) else None,
    }


def _both_orders(judgements: Judgements) -> tuple[Floats, Floats]:
    """Preferences for one model with it shown first and with it shown second, matched.

    They stand in one row, or in two rows of the same prompt and models; rows that name the models the other
    way round are turned. Several comparisons of one prompt are matched in the order given.
    """
    swap = judgements.a > judgements.b
    one = np.where(swap, 1 - judgements.b_first, judgements.a_first)  # lower-numbered model shown first
    two = np.where(swap, 1 - judgements.a_first, judgements.b_first)
    low, high = np.minimum(judgements.a, judgements.b), np.maximum(judgements.a, judgements.b)
    size = len(judgements.models)
    key = (judgements.prompts * size + low) * size + high
    waiting: dict[int, tuple[list[float], list[float]]] = {}
    for k, x, y in zip(key.tolist(), one.tolist(), two.tolist(), strict=True):
        sides = waiting.setdefault(k, ([], []))
        for side, value in zip(sides, (x, y), strict=True):
            if not math.isnan(value):
                side.append(value)
    pairs = [pair for sides in waiting.values() for pair in zip(*sides, strict=False)]
    matched = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


def _by(labels: Sequence[str], matchups: Mapping[str, Matchup], method: Method) -> Json:
    """{label: {model: its rate against the baseline within the group}}, labels in sorted order."""
    column = np.array(labels, dtype=object)
    table: Json = {}
    for label in sorted(set(labels)):
        row: Json = {}
        for name, matchup in matchups.items():
            inside = matchup.pick(column[matchup.rows] == label)
            row[name] = inside.rate(method.draws, _generator(method.seed, f"{label}\n{name}"))
        table[label] = row
    return table


def _ratings(judgements: Judgements, method: Method) -> Json:
    fit = fit_bradley_terry(
        judgements.a,
        judgements.b,
        judgements.preference,
        judgements.prompts,
        len(judgements.models),
        ties=method.ties,
        prior=method.prior,
    )
    ratings: Json = {}
    for i, name in enumerate(judgements.models):
        rating, low, high = fit.rating(i)
        ratings[name] = {
            "theta": float(fit.theta[i]),
            "rating": rating,
            "ci_low": _number(low),
            "ci_high": _number(high),
        }
    elo = sequential_elo(judgements.a, judgements.b, judgements.preference, len(judgements.models))
    return {
        "bradley_terry": ratings,
        "bradley_terry_prior": fit.prior,
        "connected": len(fit.components) == 1,
        "elo": dict(zip(judgements.models, elo, strict=True)),
    }


def _length_controls(matchups: Mapping[str, Matchup], method: Method) -> dict[str, LengthControl]:
    """The regression of every model that has judgements with known lengths."""
    if not method.length_control:
        return {}
    measured = {name: matchup.measured() for name, matchup in matchups.items()}
    measured = {name: matchup for name, matchup in measured.items() if len(matchup.rows)}
    difficulties: list[Floats | None] = [None] * len(measured)
    if method.difficulty and measured:
        together = list(measured.values())
        sizes = np.array([len(m.rows) for m in together])
        _, prompts = np.unique(np.concatenate([m.prompts for m in together]), return_inverse=True)
        joint = prompt_difficulty(
            np.repeat(np.arange(len(together)), sizes),
            prompts,
            np.concatenate([m.won for m in together]),
            np.concatenate([length_feature(m.length, m.length_other) for m in together]),
        )
        difficulties = list(np.split(joint, np.cumsum(sizes)[:-1]))
    return {
        name: length_control(m.won, m.length, m.length_other, m.prompts, hard)
        for (name, m), hard in zip(measured.items(), difficulties, strict=True)
    }


def _length_control_json(control: LengthControl, method: Method) -> Json:
    found: Json = {
        "standard_error": _number(control.standard_error),
        "theta": control.theta,
        "phi": control.phi,
        "ridge": control.ridge,
    }
    return found | ({"psi": control.psi} if method.difficulty else {})


def _generator(seed: int, name: str) -> np.random.Generator:
    """A stream of its own for every name, so that adding a model changes no other interval."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _number(value: float) -> float | None:
    """JSON has no nan: None instead."""
    return None if math.isnan(value) else value
