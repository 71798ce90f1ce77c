"""Draw training curves, win rates, ratings and reward against KL: to a file or in the terminal.

Reads the `metrics.jsonl` of runs (or their directories), summaries of `eval-winrate`, the `eval.json` of a
reward model and curves of `best-of`; several of one kind are laid over one another. What they are decides
the picture, unless --kind says it. With -o FILE.png or FILE.svg the picture is drawn by matplotlib
(pip install "rlhfkit[plot]"); without, as plain text on standard output.

Kinds: `curves` (training curves; -y picks metrics), `winrate` (bars with 95% intervals), `ratings`
(Bradley-Terry ladder), `matrix` (who beats whom), `kl` (reward against the KL to the reference, with the laws
of Gao et al. 2022 under --fit), `calibration` (reward-model accuracy against the promised one).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhfkit.config import OUTPUT as OUTPUT_GROUP
from rlhfkit.config import CommonConfig, Inputs, option
from rlhfkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from rlhfkit.data.jsonl import Source
    from rlhfkit.ui.curves import Run
    from rlhfkit.ui.figures import Figure, Panel

INPUTS = Inputs("METRICS", "metrics.jsonl files, run directories or summaries.", kind="metrics")
OUTPUT = "text"
EXAMPLES = (
    "rlhfkit plot ppo/metrics.jsonl",
    "rlhfkit plot ppo-a ppo-b -y objective/kl -y objective/scores -o curves.png",
    "rlhfkit eval-winrate sft.jsonl ppo.jsonl --judge rm | rlhfkit plot - -o winrate.svg",
    "rlhfkit plot ppo --kind kl --sqrt-kl --fit -o reward-kl.png",
)

PICTURE = "Picture"


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Settings of `plot`."""

    output: str | None = option(
        None, short="-o", group=OUTPUT_GROUP, metavar="FILE", help="Draw into this .png or .svg file."
    )
    force: bool = option(False, group=OUTPUT_GROUP, help="Replace an existing output.")
    kind: Literal["auto", "curves", "winrate", "ratings", "matrix", "kl", "calibration"] = option(
        "auto", group=PICTURE, help="What to draw (auto: by what the files are)."
    )
    y: tuple[str, ...] = option(
        (), short="-y", group=PICTURE, metavar="NAME", help="Metric to draw (repeatable; default: all known)."
    )
    x: str = option("step", short="-x", group=PICTURE, metavar="NAME", help="What to draw it against.")
    smooth: int = option(
        1, group=PICTURE, minimum=1, metavar="N", help="Moving average over N points of a curve."
    )
    name: tuple[str, ...] = option(
        (), group=PICTURE, metavar="NAME", help="Names of the inputs, in their order (repeatable)."
    )
    title: str = option("", group=PICTURE, help="Title of the picture.")
    sqrt_kl: bool = option(False, group=PICTURE, help="kl: against the square root of the KL.")
    fit: bool = option(False, group=PICTURE, help="kl: add the fitted law of Gao et al. (2022).")
    width: int | None = option(
        None, group=PICTURE, minimum=40, metavar="COLUMNS", help="Width of a chart in the terminal."
    )


@dataclass(frozen=True)
class _Input:
    """One file: a run's rows, or one document."""

    label: str
    where: str
    rows: list[dict[str, Any]]

    @property
    def kind(self) -> str:
        """What it is a picture of."""
        first = self.rows[0]
        if "models" in first and "bradley_terry" in first:
            return "winrate"
        return next((kind for key, kind in _DOCUMENTS.items() if key in first), "curves")


#: a field that tells a document from a row of metrics -> its picture
_DOCUMENTS = {"best_of": "kl", "calibration": "calibration"}
_FROM = {"ratings": "winrate", "matrix": "winrate"}


def run(inputs: Source, config: Config) -> Iterator[str]:
    """Yield the chart as text, or nothing when it was drawn into `output`."""
    picture = _prepare(config)
    figure = _figure(_read(inputs, config), config)
    if picture is None:
        from rlhfkit.ui.charts import render, terminal_columns, terminal_unicode

        yield render(figure, config.width or terminal_columns(), unicode=terminal_unicode())
        return
    from rlhfkit.files import atomic_file
    from rlhfkit.ui.plots import draw

    with atomic_file(str(config.output), force=config.force) as file:
        draw(figure, file, picture)


def _prepare(config: Config) -> str | None:
    """Check the output before the work; its format, or None for the terminal."""
    if config.output is None or config.output == "-":
        return None
    from rlhfkit.files import check_output_file
    from rlhfkit.ui.plots import picture_format, require_matplotlib

    picture = picture_format(config.output)
    require_matplotlib()
    check_output_file(config.output, force=config.force)
    return picture


# -- reading -----------------------------------------------------------------------------------------------


def _read(inputs: Source, config: Config) -> list[_Input]:
    from rlhfkit.evaluation.documents import read_objects

    if not isinstance(inputs, Sequence) or not all(isinstance(item, str | Path) for item in inputs):
        rows: list[dict[str, Any]] = [dict(item) for item in inputs]  # type: ignore[arg-type]
        return [_Input(config.name[0] if config.name else "run", "<records>", rows)]
    files = [_file(str(item)) for item in inputs]
    if config.name and len(config.name) != len(files):
        raise UsageError(f"{len(config.name)} names for {len(files)} inputs", where="--name")
    labels = config.name or _labels(files)
    found = []
    for file, label in zip(files, labels, strict=True):
        rows = read_objects(file)
        if not rows:
            raise DataError("nothing to draw", where=file, hint="the file is empty")
        found.append(_Input(label, file, rows))
    return found


def _file(name: str) -> str:
    """A run's directory stands for its metrics."""
    return str(Path(name) / "metrics.jsonl") if name != "-" and Path(name).is_dir() else name


def _labels(files: Sequence[str]) -> list[str]:
    """Short names: that of the run's directory or of the file, with more of the path where two are equal."""
    parts = []
    for file in files:
        path = Path(file)
        whole = path.parent if path.name in ("metrics.jsonl", "eval.json") and path.parent.name else path
        parts.append(whole.with_suffix("").parts if whole is path else whole.parts)
    depth = 1
    while len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]).replace("//", "/") for p in parts]


# -- choosing ----------------------------------------------------------------------------------------------


def _figure(inputs: list[_Input], config: Config) -> Figure:
    kind = config.kind
    if kind == "auto":
        kinds = {item.kind for item in inputs}
        if len(kinds) > 1:
            raise UsageError(
                f"the inputs are of several kinds: {', '.join(sorted(kinds))}", hint="draw them one by one"
            )
        kind = kinds.pop()  # type: ignore[assignment]
    if config.y and kind not in ("curves", "kl"):
        raise UsageError(f"means nothing for {kind}", where="-y")
    if kind == "curves":
        return _curves(inputs, config)
    if kind == "kl":
        return _against_kl(inputs, config)
    for item in inputs:
        if item.kind != _FROM.get(kind, kind):
            wanted = "a reward model's eval.json" if kind == "calibration" else "a summary of eval-winrate"
            raise DataError(f"not {wanted}", where=item.where)
    documents = [(item.label, item.rows[0]) for item in inputs]
    return _results(kind, documents, config)


def _results(kind: str, documents: list[tuple[str, dict[str, Any]]], config: Config) -> Figure:
    from rlhfkit.ui import results
    from rlhfkit.ui.figures import Grid

    if kind == "winrate":
        return results.win_rate_bars(documents, title=config.title)
    if kind == "ratings":
        return results.rating_ladder(documents, title=config.title)
    if kind == "matrix":
        if len(documents) > 1:
            raise UsageError("a matrix shows one summary", where="--kind")
        return results.win_matrix(documents[0][1], title=config.title)
    return Grid("", [results.calibration(documents, title=config.title)])


def _runs(inputs: list[_Input]) -> list[Run]:
    from rlhfkit.ui.curves import Run, finite_rows

    return [Run(item.label, finite_rows(item.rows)) for item in inputs]


def _curves(inputs: list[_Input], config: Config) -> Figure:
    from rlhfkit.ui.curves import curves

    runs = _runs(inputs)
    try:
        return curves(runs, names=config.y, x=config.x, smooth=config.smooth, title=config.title)
    except KeyError as error:
        name = str(error.args[0])
        if name == "step" and name not in config.y:
            raise DataError(
                "these are no metrics: nothing has a `step`",
                where=inputs[0].where,
                hint="-x NAME draws against another field",
            ) from None
        raise _no_such_metric(name, runs, "-y" if name in config.y else "-x") from None
    except ValueError as error:
        raise DataError(str(error), where=inputs[0].where) from None


def _no_such_metric(name: str, runs: list[Run], flag: str) -> UsageError:
    from rlhfkit.ui.flags import did_you_mean

    known = sorted({metric for run in runs for metric in run.names()})
    listed = f"there are {', '.join(known[:12])}" + (" and more" if len(known) > 12 else "")
    return UsageError(
        f"no metric is called {name}", where=flag, hint=did_you_mean(name, known, otherwise=listed)
    )


def _against_kl(inputs: list[_Input], config: Config) -> Figure:
    """Runs by their metrics, best-of-n by its curves, together in one panel."""
    from rlhfkit.ui.curves import kl_label, reward_against_kl
    from rlhfkit.ui.figures import Grid, Panel
    from rlhfkit.ui.results import best_of_n

    best = [item for item in inputs if "best_of" in item.rows[0]]
    trained = [item for item in inputs if "best_of" not in item.rows[0]]
    lines = []
    if trained:
        runs = _runs(trained)
        if not any("objective/kl" in run.names() for run in runs):
            raise _no_such_metric("objective/kl", runs, "--kind kl")
        names = {name: name for name in config.y} or _REWARDS
        panel = reward_against_kl(runs, rewards=names, root=config.sqrt_kl, smooth=config.smooth)
        if not panel.lines:
            raise _no_such_metric(next(iter(names)), runs, "-y")
        lines += _with_fits(panel, "rl", config)
    if best:
        panel = best_of_n([(item.label, item.rows[0]) for item in best], root=config.sqrt_kl)
        shifted = [replace(line, run=line.run + len(trained)) for line in panel.lines]
        lines += _with_fits(replace(panel, lines=shifted), "best-of-n", config)
    return Grid(
        "", [Panel(config.title or "Reward against KL", kl_label(config.sqrt_kl), "mean score", lines)]
    )


_REWARDS = {"objective/scores": "reward model", "gold": "gold", "objective/gold": "gold"}


def _with_fits(panel: Panel, form: Literal["rl", "best-of-n"], config: Config) -> list[Any]:
    """The lines, each followed by its fitted law when asked for."""
    from math import sqrt

    from rlhfkit.context import warn
    from rlhfkit.evaluation.overoptimisation import fit_gao
    from rlhfkit.ui.figures import Line

    lines: list[Any] = []
    for line in panel.lines:
        distances = [x if config.sqrt_kl else sqrt(max(0.0, x)) for x in line.x]
        fit = fit_gao(distances, line.y, form) if config.fit else None
        if fit is None:
            if config.fit:
                warn(f"{line.label}: too few points for a fit")
            lines.append(line)
            continue
        lines.append(replace(line, cloud=True))  # the law joins the points
        farthest = max(distances)
        grid = [farthest * i / 80 for i in range(81)]
        label = f"fit: α = {fit.alpha:.2f}, β = {fit.beta:.2f}, R² = {fit.r_squared:.2f}"
        xs = grid if config.sqrt_kl else [d * d for d in grid]
        lines.append(Line(label, xs, [fit(d) for d in grid], line.run, line.style, fit=True))
    return lines
