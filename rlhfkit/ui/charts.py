"""The same pictures as plain text, for a terminal: no colours, no cursor movements.

Curves are drawn with Braille dots (one curve) or a letter-like mark each (several); where the locale is not
UTF-8, everything is ASCII.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rlhfkit.ui.figures import Bars, Figure, Grid, Line, Matrix, Panel, finite
from rlhfkit.ui.terminal import display_width, format_table, safe

HEIGHT = 12
MIN_WIDTH = 40
_MARKS = {True: "●×▲◆○+□", False: "*xo+#@%"}
_PLAIN = str.maketrans({"√": "sqrt ", "·": "-"})
#: bit of the Braille pattern of each dot, by row and column within a cell
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def terminal_columns() -> int:
    """The width of the terminal, or COLUMNS; 80 where there is neither."""
    return shutil.get_terminal_size((80, 24)).columns


def terminal_unicode(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the locale is a UTF-8 one; a locale that is not set is taken for one."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        value = environ.get(name, "").lower().replace("-", "")
        # Python itself sets LC_CTYPE=C.UTF-8 where LANG=C (PEP 538).
        if value and not (name == "LC_CTYPE" and value == "c.utf8" and environ.get("LANG")):
            return "utf8" in value
    return True


def render(figure: Figure, width: int, *, unicode: bool = True) -> str:
    """The figure as lines of at most `width` columns (at least 40), each with its line end."""
    width = max(width, MIN_WIDTH)
    match figure:
        case Grid():
            lines = _grid(figure, width, unicode)
        case Bars():
            lines = _bars(figure, width, unicode)
        case Matrix():
            lines = _matrix(figure, unicode)
    text = "".join(line.rstrip() + "\n" for line in lines)
    return text if unicode else text.translate(_PLAIN).encode("ascii", "replace").decode()


# -- curves ------------------------------------------------------------------------------------------------


def _grid(grid: Grid, width: int, unicode: bool) -> list[str]:
    lines = [safe(grid.title), ""] if grid.title else []
    for index, panel in enumerate(grid.panels):
        lines += [""] if index else []
        lines += _panel(panel, width, unicode)
    return lines


def _panel(panel: Panel, width: int, unicode: bool) -> list[str]:
    (left, right), (low, high) = panel.extent()
    if high == low:
        low, high = low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05
    if right == left:
        left, right = left - 0.5, right + 0.5
    labels = [_short(high), _short((low + high) / 2), _short(low)]
    margin = max(map(len, labels)) + 1
    columns = width - margin - 1
    area = _Area(columns, HEIGHT, (left, right), (low, high))
    if panel.level is not None:
        area.level(panel.level, "┄" if unicode else "-")
    if len(panel.lines) == 1 and unicode:
        area.braille(panel.lines[0])
    else:
        for index, line in enumerate(panel.lines):
            area.marks(line, "." if line.fit and not unicode else "·" if line.fit else _mark(index, unicode))
    bar, corner, base = ("│", "└", "─") if unicode else ("|", "+", "-")
    rows = [
        f"{label:>{margin}}{bar}{text}"
        for label, text in zip(_beside(labels, HEIGHT), area.rows(), strict=True)
    ]
    ends = _short(left), _short(right)
    axis = ends[0] + safe(panel.x_label).center(columns - len(ends[0]) - len(ends[1])) + ends[1]
    title = safe(
        f"{panel.title} ({panel.y_label})" if panel.y_label not in ("", panel.title) else panel.title
    )
    return [
        title,
        *rows,
        " " * margin + corner + base * columns,
        " " * (margin + 1) + axis,
        *_legend(panel.lines, unicode),
    ]


class _Area:
    """A grid of characters with data coordinates."""

    def __init__(
        self, columns: int, rows: int, x_range: tuple[float, float], y_range: tuple[float, float]
    ) -> None:
        self._columns, self._rows = columns, rows
        self._x, self._y = x_range, y_range
        self._cells = [[" "] * columns for _ in range(rows)]

    def rows(self) -> list[str]:
        return ["".join(row) for row in self._cells]

    def _place(self, x: float, y: float, fine_x: int, fine_y: int) -> tuple[int, int]:
        """Column and row (from the top) on a raster of fine_x by fine_y points in a cell."""
        columns, rows = self._columns * fine_x, self._rows * fine_y
        column = (x - self._x[0]) / (self._x[1] - self._x[0]) * (columns - 1)
        row = (self._y[1] - y) / (self._y[1] - self._y[0]) * (rows - 1)
        return min(max(round(column), 0), columns - 1), min(max(round(row), 0), rows - 1)

    def level(self, y: float, mark: str) -> None:
        _, row = self._place(self._x[0], y, 1, 1)
        self._cells[row] = [mark] * self._columns

    def marks(self, line: Line, mark: str) -> None:
        for column, row in self._path(line, 1, 1):
            self._cells[row][column] = mark

    def braille(self, line: Line) -> None:
        bits: dict[tuple[int, int], int] = {}
        for column, row in self._path(line, 2, 4):
            cell = row // 4, column // 2
            bits[cell] = bits.get(cell, 0) | _DOTS[row % 4][column % 2]
        for (row, column), pattern in bits.items():
            self._cells[row][column] = chr(0x2800 + pattern)

    def _path(self, line: Line, fine_x: int, fine_y: int) -> set[tuple[int, int]]:
        """Raster points of a curve, neighbours joined by straight strokes."""
        places = [
            self._place(x, y, fine_x, fine_y) for x, y in zip(line.x, line.y, strict=True) if finite(x, y)
        ]
        points = set(places)
        for (x0, y0), (x1, y1) in pairwise(places):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(steps):
                points.add((x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)))
        return points


def _beside(labels: Sequence[str], height: int) -> list[str]:
    column = [""] * height
    column[0], column[(height - 1) // 2], column[-1] = labels
    return column


def _legend(lines: Sequence[Line], unicode: bool) -> list[str]:
    if len(lines) < 2:
        return []
    return [
        f"  {('·' if unicode else '.') if line.fit else _mark(i, unicode)} {safe(line.label)}"
        for i, line in enumerate(lines)
    ]


def _mark(index: int, unicode: bool) -> str:
    marks = _MARKS[unicode]
    return marks[index % len(marks)]


def _short(value: float) -> str:
    """A number in few characters."""
    size = abs(value)
    if size >= 1e6:
        return f"{value:.3g}"
    if size >= 10_000:
        return f"{value / 1000:.4g}k"
    if 0 < size < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4g}"


# -- bars --------------------------------------------------------------------------------------------------


def _bars(bars: Bars, width: int, unicode: bool) -> list[str]:
    """One line a value: its bar (or its place on the scale) with the interval, then the numbers."""
    shown = sorted(bars.bars, key=lambda bar: -bar.value) if bars.ladder else list(bars.bars)
    names = [_name(bar.label, bars.series[bar.series] if bars.series else "") for bar in shown]
    numbers = [_numbers(bar.value, bar.low, bar.high, bars.digits) for bar in shown]
    edge = max(map(display_width, names))
    room = max(10, width - edge - max(map(len, numbers)) - 3)
    values = [v for bar in shown for v in (bar.value, bar.low, bar.high) if v is not None]
    low, high = (min(values), max(values)) if bars.ladder else (0.0, max([*values, bars.level or 0.0]))
    if high == low:
        low, high = low - 1, high + 1

    def place(value: float) -> int:
        return min(max(round((value - low) / (high - low) * (room - 1)), 0), room - 1)

    lines = [safe(bars.title)]
    for bar, name, number in zip(shown, names, numbers, strict=True):
        cells = _bar_cells(
            None if bars.ladder else place(bar.value),
            place(bar.value),
            None if bar.low is None else place(bar.low),
            None if bar.high is None else place(bar.high),
            None if bars.level is None else place(bars.level),
            room,
            unicode,
        )
        lines.append(name + " " * (edge - display_width(name) + 1) + cells + " " + number)
    return lines


def _name(label: str, series: str) -> str:
    return safe(f"{label} ({series})" if series else label)


def _numbers(value: float, low: float | None, high: float | None, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _bar_cells(
    filled: int | None,
    value: int,
    low: int | None,
    high: int | None,
    level: int | None,
    room: int,
    unicode: bool,
) -> str:
    block, left, right, dash, dot, upright = "█├┤─●┊" if unicode else "#||-o:"
    cells = [" "] * room
    if level is not None:
        cells[level] = upright
    if filled is not None:
        cells[: filled + 1] = block * (filled + 1)
    if low is not None and high is not None:
        cells[low : high + 1] = dash * (high - low + 1)
        cells[low], cells[high] = left, right
        cells[value] = dot
    elif filled is None:
        cells[value] = dot
    return "".join(cells)


# -- matrix ------------------------------------------------------------------------------------------------


def _matrix(matrix: Matrix, unicode: bool) -> list[str]:
    nothing = "·" if unicode else "-"
    rows = [
        [name, *(nothing if value is None else f"{value:.2f}" for value in row)]
        for name, row in zip(matrix.names, matrix.values, strict=True)
    ]
    return [safe(matrix.title), *format_table(["", *matrix.names], rows)]
