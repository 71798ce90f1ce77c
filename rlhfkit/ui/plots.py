"""Pictures as PNG and SVG files, with matplotlib (the `plot` extra).

The colours are Okabe and Ito's, told apart by colour-blind readers, and every run has a marker or a dash
pattern of its own as well. The same figure gives the same bytes: no dates, fixed ids.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from rlhfkit.errors import RlhfkitError, UsageError
from rlhfkit.ui.figures import Bars, Figure, Grid, Line, Matrix, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

FORMATS = ("png", "svg")
#: Okabe and Ito 2008, the ones that stand out on white; black last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
_GREY, _INK, _PLAIN = "#666666", "#222222", "#B8B8B8"
_STYLE: Any = {
    "svg.hashsalt": "rlhfkit",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a model may be called a$b$
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.dpi": 150,
    "savefig.dpi": 150,
}


def picture_format(path: str) -> str:
    """`png` or `svg`, by the name of the file. Raises UsageError for any other."""
    suffix = path.rpartition(".")[2].lower()
    if suffix not in FORMATS:
        raise UsageError(f"{path}: neither .png nor .svg", where="--output")
    return suffix


def require_matplotlib() -> None:
    """Raise RlhfkitError with the remedy when matplotlib is not there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RlhfkitError(
            "pictures need matplotlib",
            hint='pip install "rlhfkit[plot]", or leave out --output for a chart in the terminal',
        ) from None


def draw(figure: Figure, file: BinaryIO, picture: str) -> None:
    """Draw `figure` into `file` as `picture` (png or svg)."""
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        match figure:
            case Grid():
                canvas = _draw_grid(figure)
            case Bars():
                canvas = _draw_ladder(figure) if figure.ladder else _draw_bars(figure)
            case Matrix():
                canvas = _draw_matrix(figure)
        metadata = {"Date": None} if picture == "svg" else {"Software": None}
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=picture, metadata=metadata)
    file.write(buffer.getvalue())


def _canvas(width: float, height: float) -> Canvas:
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained")


# -- curves ------------------------------------------------------------------------------------------------


def _draw_grid(grid: Grid) -> Canvas:
    count = len(grid.panels)
    columns = 1 if count == 1 else 2 if count in (2, 4) else 3
    rows = math.ceil(count / columns)
    runs = _legend_of_runs(grid)
    many = count == 1 and len(grid.panels[0].lines) > 4  # a legend that would cover the curves
    size = (6.4, 4.4) if count == 1 else (3.7 * columns, 2.7 * rows + (0.35 if runs else 0))
    if many:
        size = (6.4, 4.4 + 0.11 * len(grid.panels[0].lines))
    canvas = _canvas(*size)
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, grid.panels, strict=False):
        _draw_panel(ax, panel, alone=count == 1)
        if many:
            canvas.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        elif count == 1 and len(panel.lines) > 1:
            ax.legend(loc="best")
    for ax in axes[count:]:
        ax.set_axis_off()
    if grid.title:
        canvas.suptitle(grid.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    if runs:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=_colour(run), linewidth=2.2, label=label) for run, label in runs]
        canvas.legend(handles=handles, loc="outside lower center", ncols=min(len(runs), 5))
    return canvas


def _legend_of_runs(grid: Grid) -> list[tuple[int, str]]:
    """Runs named once for the whole grid: where every label is `run` or `run: metric`."""
    if len(grid.panels) == 1:
        return []
    runs: dict[int, str] = {}
    for panel in grid.panels:
        for line in panel.lines:
            runs.setdefault(line.run, line.label.partition(" · ")[0])
    return list(runs.items()) if len(runs) > 1 else []


def _draw_panel(ax: Axes, panel: Panel, *, alone: bool) -> None:
    for line in panel.lines:
        _draw_line(ax, line, alone=alone)
    if panel.level is not None:
        ax.axhline(panel.level, color=_GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
    (left, right), (low, high) = panel.extent()
    if panel.diagonal:
        ends = [min(left, low) - 0.02, max(right, high) + 0.02]
        ax.plot(ends, ends, color=_GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        ax.set_xlim(*ends)
        ax.set_ylim(*ends)
    if left == right:
        ax.set_xlim(left - 0.5, right + 0.5)
    if panel.fraction and not panel.diagonal:
        span = max(high - low, 0.05)
        ax.set_ylim(max(-0.02, low - 0.1 * span), min(1.02, high + 0.1 * span))
    ax.set_title(panel.title)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    ax.margins(x=0.02)
    _tidy_numbers(ax, left, right, low, high)
    if not alone and len({line.style for line in panel.lines}) > 1:
        _legend_of_styles(ax, panel)


def _draw_line(ax: Axes, line: Line, *, alone: bool) -> None:
    colour = _colour(line.run)
    if line.low:
        ax.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    if line.raw:
        ax.plot(line.x, line.raw, color=colour, linewidth=0.8, alpha=0.3, zorder=2)
    marker = MARKERS[line.run % len(MARKERS)] if line.points or len(line.x) < 3 else None
    style: dict[str, Any] = {"linewidth": 1.8, "marker": marker, "markersize": 4.5 if alone else 3.5}
    if line.cloud:  # filled for the first kind, hollow for the others
        face = colour if line.style == 0 else "none"
        style = {"linewidth": 0, "marker": MARKERS[line.run % len(MARKERS)], "markersize": 4}
        style |= {"markerfacecolor": face, "markeredgewidth": 0.8, "alpha": 0.45}
    elif line.fit:
        style = {"linewidth": 1.5}
    dashes = DASHES[line.style % len(DASHES)]
    ax.plot(line.x, line.y, color=colour, linestyle=dashes, label=line.label, zorder=2.5, **style)


def _legend_of_styles(ax: Axes, panel: Panel) -> None:
    from matplotlib.lines import Line2D

    several_runs = len({line.run for line in panel.lines}) > 1
    named: dict[int, str] = {}
    for line in panel.lines:
        named.setdefault(line.style, line.label.rpartition(" · ")[2])
    handles = [
        Line2D(
            [],
            [],
            color=_GREY if several_runs else _colour(panel.lines[0].run),
            linestyle=DASHES[s % len(DASHES)],
            label=label,
        )
        for s, label in named.items()
    ]
    ax.legend(handles=handles, loc="best")


def _tidy_numbers(ax: Axes, left: float, right: float, low: float, high: float) -> None:
    """Short tick labels: 1.5M instead of 1500000, 2e-05 where values are tiny; no offset on the side."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, ScalarFormatter

    for axis, largest in ((ax.xaxis, max(abs(left), abs(right))), (ax.yaxis, max(abs(low), abs(high)))):
        if largest >= 10_000:
            axis.set_major_formatter(EngFormatter(sep=""))
        elif largest < 1e-2:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        else:
            axis.set_major_formatter(ScalarFormatter(useOffset=False))


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


# -- bars --------------------------------------------------------------------------------------------------


def _draw_bars(bars: Bars) -> Canvas:
    groups = list(dict.fromkeys(bar.label for bar in bars.bars))
    series = sorted({bar.series for bar in bars.bars})
    width = 0.72 / len(series)
    canvas = _canvas(max(4.8, 1.6 + (0.75 + 0.3 * len(series)) * len(groups)), 4.2)
    ax = canvas.subplots()
    for bar in bars.bars:
        place = groups.index(bar.label) + (series.index(bar.series) - (len(series) - 1) / 2) * width
        colour = _PLAIN if bar.plain else _colour(bar.series)
        ax.bar(place, bar.value, width * 0.92, color=colour, zorder=2)
        top = bar.value
        if bar.low is not None and bar.high is not None:
            error = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
            ax.errorbar(place, bar.value, yerr=error, color=_INK, capsize=4, linewidth=1.3, zorder=4)
            top = bar.high
        if len(bars.bars) <= 16:
            ax.annotate(
                f"{bar.value:.{bars.digits - 1}f}",
                (place, top),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=_INK,
            )
    _level(ax, bars, horizontal=True)
    ax.set_xticks(range(len(groups)), [_wrapped(label, bars) for label in groups])
    ax.grid(visible=False, axis="x")
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel(bars.y_label)
    ax.set_title(bars.title)
    highest = max(max(bar.value, bar.high or 0.0) for bar in bars.bars)
    ax.set_ylim(0, max(highest * 1.12, (bars.level or 0) * 1.2))
    if bars.series:
        _legend_of_series(ax, bars)
    return canvas


def _draw_ladder(bars: Bars) -> Canvas:
    """Dots on a scale, best on top."""
    groups = list(dict.fromkeys(bar.label for bar in sorted(bars.bars, key=lambda bar: -bar.value)))
    several = len({bar.series for bar in bars.bars})
    canvas = _canvas(6.4, 1.5 + (0.3 + 0.15 * several) * len(groups))
    ax = canvas.subplots()
    for bar in bars.bars:
        place = groups.index(bar.label) + (bar.series - (several - 1) / 2) * 0.6 / several
        colour = _colour(bar.series)
        if bar.low is not None and bar.high is not None:
            ax.plot([bar.low, bar.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot(bar.value, place, MARKERS[bar.series % len(MARKERS)], color=colour, markersize=7, zorder=3)
        edge = bar.value if bar.high is None else bar.high
        ax.annotate(
            f"{bar.value:.{bars.digits}f}",
            (edge, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_INK,
        )
    _level(ax, bars, horizontal=False)
    ax.set_yticks(range(len(groups)), [_wrapped(label, bars) for label in groups])
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.12)
    ax.set_xlabel(bars.y_label)
    ax.set_title(bars.title)
    if bars.series:
        _legend_of_series(ax, bars)
    return canvas


def _level(ax: Axes, bars: Bars, *, horizontal: bool) -> None:
    if bars.level is None:
        return
    line = ax.axhline if horizontal else ax.axvline
    line(bars.level, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    if bars.level_label and horizontal:
        ax.annotate(
            bars.level_label,
            (1, bars.level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_GREY,
            annotation_clip=False,
        )


def _legend_of_series(ax: Axes, bars: Bars) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_colour(i), label=label) for i, label in enumerate(bars.series)]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1))


def _wrapped(label: str, bars: Bars) -> str:
    note = next((bar.note for bar in bars.bars if bar.label == label and bar.note), "")
    lines = textwrap.wrap(label, 18, break_on_hyphens=True) or [""]
    return "\n".join([*lines, note] if note else lines)


# -- matrix ------------------------------------------------------------------------------------------------


def _draw_matrix(matrix: Matrix) -> Canvas:
    from matplotlib.colors import LinearSegmentedColormap

    size = len(matrix.names)
    canvas = _canvas(2.4 + 0.85 * size, 1.7 + 0.7 * size)
    ax = canvas.subplots()
    shades = LinearSegmentedColormap.from_list("beats", [COLOURS[1], "#FFFFFF", COLOURS[0]])
    numbers = [[math.nan if value is None else value for value in row] for row in matrix.values]
    image = ax.imshow(numbers, cmap=shades, vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(matrix.values):
        for j, value in enumerate(row):
            if value is not None:
                text = f"{value:.2f}" + (f"\n{matrix.notes[i][j]}" if matrix.notes else "")
                dark = abs(value - 0.5) > 0.38
                ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else _INK)
    ticks: Sequence[int] = range(size)
    ax.set_xticks(ticks, [textwrap.fill(n, 14) for n in matrix.names], rotation=30, ha="right")
    ax.set_yticks(ticks, [textwrap.fill(n, 18) for n in matrix.names])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(matrix.title)
    ax.set_xlabel(matrix.column_label)
    ax.set_ylabel(matrix.row_label)
    bar = canvas.colorbar(image, ax=ax, shrink=0.8, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.outline.set_visible(False)
    return canvas
