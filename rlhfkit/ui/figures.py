"""What a picture shows, before anything is drawn: `plots` draws it with matplotlib, `charts` as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Line:
    """A curve. Points with a missing or non-finite coordinate are gaps."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    run: int = 0  # lines of one run share a colour
    style: int = 0  # lines of one kind share a dash pattern
    fit: bool = False  # a fitted law: drawn thin, without points
    points: bool = False  # mark the points
    cloud: bool = False  # nothing but points, many of them
    raw: Sequence[float] = ()  # y before smoothing, shown faintly
    low: Sequence[float] = ()  # ends of an interval round every point
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """A pair of axes with curves."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    level: float | None = None  # a horizontal line to compare with
    diagonal: bool = False  # the line y = x to compare with
    fraction: bool = False  # y lies in 0..1

    def extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The smallest and largest finite x and y; (0, 1) where there is none."""
        xs = [x for line in self.lines for x, y in zip(line.x, line.y, strict=True) if finite(x, y)]
        ys = [y for line in self.lines for x, y in zip(line.x, line.y, strict=True) if finite(x, y)]
        ys += [v for line in self.lines for v in (*line.low, *line.high, *line.raw) if math.isfinite(v)]
        if self.level is not None:
            ys.append(self.level)
        if not xs:
            return (0.0, 1.0), (0.0, 1.0)
        return (min(xs), max(xs)), (min(ys), max(ys))


@dataclass(frozen=True)
class Bar:
    """A value with an interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0
    plain: bool = False  # what the others are compared with: drawn without an interval
    note: str = ""  # shown under the label


@dataclass(frozen=True)
class Bars:
    """Values with intervals side by side: as bars from 0, or as dots on a scale (`ladder`)."""

    title: str
    y_label: str
    bars: Sequence[Bar]
    series: Sequence[str] = ()  # names of the series, where there are several
    level: float | None = None
    level_label: str = ""
    ladder: bool = False
    digits: int = 3


@dataclass(frozen=True)
class Matrix:
    """A square table of fractions; None where there is nothing."""

    title: str
    names: Sequence[str]
    values: Sequence[Sequence[float | None]]
    row_label: str = ""
    column_label: str = ""
    notes: Sequence[Sequence[str]] = field(default_factory=tuple)  # a second line in every cell


@dataclass(frozen=True)
class Grid:
    """Panels beside and below one another."""

    title: str
    panels: Sequence[Panel]


Figure: TypeAlias = Grid | Bars | Matrix


def finite(*values: float) -> bool:
    """Whether all are finite numbers."""
    return all(math.isfinite(value) for value in values)
