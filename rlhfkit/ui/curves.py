"""Panels of training curves out of the rows of `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlhfkit.ui.figures import Grid, Line, Panel, finite


@dataclass(frozen=True)
class Run:
    """The logged rows of one run: metric name -> value; what is no number is not there."""

    label: str
    rows: Sequence[Mapping[str, float]]

    def names(self) -> list[str]:
        """All metrics, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def series(self, x: str, y: str) -> tuple[list[float], list[float]]:
        """The points of the rows that have both."""
        points = [(row[x], row[y]) for row in self.rows if x in row and y in row]
        return [a for a, _ in points], [b for _, b in points]


@dataclass(frozen=True)
class Known:
    """A panel that is shown when a run has one of its metrics."""

    title: str
    y_label: str
    metrics: Mapping[str, str]  # name -> what to call it beside the others
    level: float | None = None
    fraction: bool = False


#: In the order of their importance; a picture takes the first nine it has data for.
KNOWN = (
    Known(
        "Loss",
        "nats",
        {"loss/train": "training", "train/loss": "training", "loss": "training", "eval/loss": "held out"},
    ),
    Known(
        "Accuracy on pairs",
        "fraction right",
        {"accuracy": "training", "train/accuracy": "training", "eval/accuracy": "held out"},
        level=0.5,
        fraction=True,
    ),
    Known(
        "Score", "mean score", {"objective/scores": "reward model", "gold": "gold", "objective/gold": "gold"}
    ),
    Known("KL to the reference", "nats per response", {"objective/kl": "k1", "objective/kl_k3": "k3"}),
    Known("Score minus KL penalty", "mean reward", {"objective/rlhf_reward": ""}),
    Known("Entropy", "nats per response", {"objective/entropy": ""}),
    Known(
        "Clipped updates",
        "fraction of tokens",
        {"policy/clipfrac_avg": "policy", "val/clipfrac_avg": "value"},
    ),
    Known("Response length", "tokens", {"response/length": ""}),
    Known("Responses that end", "fraction", {"response/eos_rate": ""}, fraction=True),
    Known("Explained variance of the value", "fraction", {"val/explained_variance": ""}),
    Known("Pretraining loss", "nats per token", {"loss/ptx_avg": ""}),
    Known("Value loss", "", {"loss/value_avg": ""}),
    Known("Score margin", "winner minus loser", {"margin": ""}),
    Known(
        "Gradient norm",
        "before clipping",
        {"grad_norm": "", "train/grad_norm": "", "policy/grad_norm": "policy", "val/grad_norm": "value"},
    ),
    Known("Learning rate", "", {"lr": "", "train/lr": ""}),
    Known("Throughput", "tokens per second", {"tokens_per_second": "", "train/tokens_per_second": ""}),
)
MAX_PANELS = 9
_X_LABELS = {"step": "step", "time": "seconds", "episode": "episodes", "tokens": "tokens"}


def curves(
    runs: Sequence[Run], *, names: Sequence[str] = (), x: str = "step", smooth: int = 1, title: str = ""
) -> Grid:
    """One panel for each of `names`, or for what is known of the runs' metrics; runs are overlaid.

    `smooth` is the window, in points, of a centred moving average. Raises KeyError with the first of
    `names` (or `x`) that no run has, and ValueError when there is nothing to show.
    """
    present = {name for run in runs for name in run.names()}
    for name in (*names, x):
        if name not in present:
            raise KeyError(name)
    wanted = [Known(name, name, {name: ""}) for name in names] or _known(present, x)
    panels = [panel for known in wanted if (panel := _panel(runs, known, x, smooth)).lines]
    if not panels:
        raise ValueError(f"no metric has more than its {x}")
    return Grid(title, panels)


def _known(present: Iterable[str], x: str) -> list[Known]:
    """The panels there is data for; with no known name, one for each metric."""
    have = set(present)
    known = [k for k in KNOWN if have & k.metrics.keys()]
    if not known:
        known = [Known(name, name, {name: ""}) for name in sorted(have - {x, "step", "time"})]
    return known[:MAX_PANELS]


def _panel(runs: Sequence[Run], known: Known, x: str, smooth: int) -> Panel:
    lines = []
    several = sum(any(name in run.names() for run in runs) for name in known.metrics) > 1
    kinds = list(dict.fromkeys(known.metrics.values()))
    for number, run in enumerate(runs):
        for name, kind in known.metrics.items():
            xs, ys = run.series(x, name)
            if not xs:
                continue
            label = f"{run.label} · {kind}" if several and kind else run.label
            low, high = _band(run, x, name)
            smoothed, raw = moving_average(ys, smooth), ys if smooth > 1 else ()
            lines.append(Line(label, xs, smoothed, number, kinds.index(kind), low=low, high=high, raw=raw))
    return Panel(
        known.title, _X_LABELS.get(x, x), known.y_label, lines, level=known.level, fraction=known.fraction
    )


def _band(run: Run, x: str, name: str) -> tuple[list[float], list[float]]:
    """The 95% interval where the run logs a standard error (`NAME_se`) at every point of a metric."""
    rows = [row for row in run.rows if x in row and name in row]
    if not rows or not all(f"{name}_se" in row for row in rows):
        return [], []
    half = [1.96 * row[f"{name}_se"] for row in rows]
    return (
        [row[name] - h for row, h in zip(rows, half, strict=True)],
        [row[name] + h for row, h in zip(rows, half, strict=True)],
    )


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred moving average over at most `window` points, fewer at the ends."""
    if window <= 1:
        return list(values)
    before, after = (window - 1) // 2, window // 2
    averaged = []
    for i in range(len(values)):
        part = [v for v in values[max(0, i - before) : i + after + 1] if math.isfinite(v)]
        averaged.append(sum(part) / len(part) if part else math.nan)
    return averaged


def reward_against_kl(
    runs: Sequence[Run], *, rewards: Mapping[str, str], root: bool = False, smooth: int = 1
) -> Panel:
    """Mean reward against KL as training went on; `rewards` maps metric names to what to call them.

    A long run is a cloud of points unless it is smoothed: joined, they would scribble over one another.
    """
    lines = []
    several = sum(any(name in run.names() for run in runs) for name in rewards) > 1
    for number, run in enumerate(runs):
        for style, (name, kind) in enumerate(rewards.items()):
            xs, ys = run.series("objective/kl", name)
            if not xs:
                continue
            distances = [math.sqrt(max(0.0, k)) for k in moving_average(xs, smooth)]
            if not root:
                distances = [d * d for d in distances]
            label = f"{run.label} · {kind}" if several else run.label
            cloud = smooth == 1 and len(xs) > 30
            values = moving_average(ys, smooth)
            lines.append(Line(label, distances, values, number, style, points=len(xs) <= 30, cloud=cloud))
    return Panel("Reward against KL", kl_label(root), "mean score", lines)


def kl_label(root: bool) -> str:
    """The label of an axis of distances from the reference."""
    return "√KL to the reference (√nats)" if root else "KL to the reference (nats per response)"


def finite_rows(rows: Iterable[Mapping[str, object]]) -> list[dict[str, float]]:
    """Rows with nothing but their finite numbers."""
    return [
        {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and finite(value)
        }
        for row in rows
    ]
