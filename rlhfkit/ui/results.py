"""Pictures of results: win rates, ratings, head-to-heads, calibration, best-of-n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhfkit.ui.curves import kl_label
from rlhfkit.ui.figures import Bar, Bars, Line, Matrix, Panel

Summary = Mapping[str, Any]


def win_rate_bars(summaries: Sequence[tuple[str, Summary]], *, title: str = "") -> Bars:
    """Win rates with 95% intervals, in the order of the models, as InstructGPT's figure 1 has them.

    Several summaries stand side by side, a colour each. Models without a win rate are left out.
    """
    baseline = summaries[0][1]["baseline"]
    bars = []
    for series, (_, summary) in enumerate(summaries):
        for name, model in summary["models"].items():
            if model["win_rate"] is not None:
                is_baseline = name == summary["baseline"]
                bars.append(
                    Bar(
                        name,
                        model["win_rate"],
                        None if is_baseline else model.get("ci_low"),
                        None if is_baseline else model.get("ci_high"),
                        series,
                        plain=is_baseline,
                    )
                )
    return Bars(
        title or f"Win rate against {baseline}",
        "fraction won, with 95% interval",
        bars,
        [label for label, _ in summaries] if len(summaries) > 1 else (),
        level=0.5,
        level_label="even",
    )


def rating_ladder(summaries: Sequence[tuple[str, Summary]], *, title: str = "") -> Bars:
    """Bradley-Terry ratings with 95% intervals, best on top."""
    bars = [
        Bar(name, rating["rating"], rating["ci_low"], rating["ci_high"], series)
        for series, (_, summary) in enumerate(summaries)
        for name, rating in summary["bradley_terry"].items()
    ]
    return Bars(
        title or "Bradley-Terry ratings",
        "rating (400 points = ten to one)",
        bars,
        [label for label, _ in summaries] if len(summaries) > 1 else (),
        ladder=True,
        digits=0,
    )


def win_matrix(summary: Summary, *, title: str = "") -> Matrix:
    """How often the row beats the column, best rated first."""
    ratings, table = summary["bradley_terry"], summary["head_to_head"]
    names = sorted(ratings, key=lambda name: -ratings[name]["rating"])
    cells = [[table.get(a, {}).get(b) for b in names] for a in names]
    return Matrix(
        title or "Win rate of row over column",
        names,
        [[None if cell is None else cell["win_rate"] for cell in row] for row in cells],
        "model",
        "opponent",
        [["" if cell is None else f"n={cell['n']}" for cell in row] for row in cells],
    )


def calibration(reports: Sequence[tuple[str, Summary]], *, title: str = "") -> Panel:
    """Accuracy on held-out pairs against what the score gap promises, sigmoid(gap)."""
    lines = []
    for number, (label, report) in enumerate(reports):
        bins = [b for b in report["calibration"] if b["pairs"]]
        half = [1.96 * (b["accuracy"] * (1 - b["accuracy"]) / b["pairs"]) ** 0.5 for b in bins]
        accuracy = [b["accuracy"] for b in bins]
        lines.append(
            Line(
                label,
                [b["promised"] for b in bins],
                accuracy,
                number,
                points=True,
                low=[max(0.0, a - h) for a, h in zip(accuracy, half, strict=True)],
                high=[min(1.0, a + h) for a, h in zip(accuracy, half, strict=True)],
            )
        )
    return Panel(
        title or "Calibration of the reward model",
        "promised: mean of sigmoid(score gap)",
        "fraction of pairs right",
        lines,
        diagonal=True,
        fraction=True,
    )


def best_of_n(curves: Sequence[tuple[str, Summary]], *, root: bool = False, title: str = "") -> Panel:
    """Expected score of the best of n against the KL that choosing it costs."""
    lines = []
    for number, (label, curve) in enumerate(curves):
        points = curve["best_of"]
        distances = [p["kl"] ** 0.5 if root else p["kl"] for p in points]
        kinds = [kind for kind in ("score", "gold") if points[0].get(kind) is not None]
        for style, kind in enumerate(kinds):
            values = [p[kind] for p in points]
            errors = [1.96 * (p.get(f"{kind}_se") or 0.0) for p in points]
            lines.append(
                Line(
                    f"{label} · {kind}" if len(kinds) > 1 else label,
                    distances,
                    values,
                    number,
                    style,
                    points=True,
                    low=[v - e for v, e in zip(values, errors, strict=True)],
                    high=[v + e for v, e in zip(values, errors, strict=True)],
                )
            )
    return Panel(title or "Best of n", kl_label(root), "expected score", lines)
