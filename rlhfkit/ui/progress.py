"""Progress: a live bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from rlhfkit.context import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_INTERVAL = 10.0  # seconds between progress lines where there is no terminal
FIGURES_SHOWN = 4  # beside tokens/s; metrics.jsonl has them all


def duration(seconds: float) -> str:
    """`4.2s`, `1:07` or `2:03:09`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def figure(value: object) -> str:
    """A number with four digits that count, or the text of anything else."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Count:
    """How far a count is and how fast it goes; the rate leaves out what a resumed run had done before."""

    def __init__(self, total: int | None, unit: str) -> None:
        self.total = total
        self.unit = unit if unit.endswith("s") else f"{unit}s"
        self.began = time.monotonic()
        self.start: int | None = None
        self.done = 0
        self.figures: Mapping[str, object] = {}

    def update(self, done: int, figures: Mapping[str, object] | None) -> None:
        """`done` units are finished."""
        if self.start is None:
            # An opening update without figures says where the count starts.
            self.start = done if figures is None else 0
        self.done = done
        self.figures = figures or self.figures

    def text(self, *, ended: bool = False) -> str:
        """`120/1000 steps, 3.1/s, loss 2.31, 4:43 left`."""
        seconds = time.monotonic() - self.began
        fresh = self.done - (self.start or 0)
        of = f"/{self.total}" if self.total is not None else ""
        parts = [f"{self.done}{of} {self.unit}"]
        if fresh > 0 and seconds > 0:
            rate = fresh / seconds
            parts.append(f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g}s each")
        figures = dict(self.figures)
        speed = figures.pop("tokens_per_second", None)
        parts += [f"{name} {figure(value)}" for name, value in list(figures.items())[:FIGURES_SHOWN]]
        if isinstance(speed, float):
            parts.append(f"{speed:,.0f} tokens/s")
        if ended:
            parts.append(f"took {duration(seconds)}")
        elif fresh > 0 and self.total is not None:
            parts.append(f"{duration((self.total - self.done) * seconds / fresh)} left")
        return ", ".join(parts)


class LineProgress(Progress):
    """Progress as lines given to `say`."""

    def __init__(self, say: Callable[[str], None], title: str, total: int | None, unit: str) -> None:
        self._say = say
        self._title = title
        self._count = Count(total, unit)
        self._spoke = self._count.began

    def update(self, done: int, figures: Mapping[str, object] | None = None) -> None:
        """Say a line if the last one is ten seconds old."""
        self._count.update(done, figures)
        now = time.monotonic()
        if now - self._spoke >= PLAIN_INTERVAL:
            self._spoke = now
            self._say(f"{self._title}: {self._count.text()}")

    def close(self) -> None:
        """Say the last line."""
        if self._count.done > (self._count.start or 0):
            self._say(f"{self._title}: {self._count.text(ended=True)}")


class LiveBars:
    """The one live display of a terminal, running while any bar is."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._rich: RichProgress | None = None
        self._open = 0

    @property
    def running(self) -> bool:
        """Whether bars are on the screen, so that other lines must go above them."""
        return self._rich is not None

    def open(self) -> RichProgress:
        """One more bar."""
        if self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress
            from rich.table import Column

            console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
            state = Column(no_wrap=True, overflow="ellipsis")
            self._rich = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[state]}", markup=False, table_column=state),
                console=console,
                refresh_per_second=4,
            )
            self._rich.start()
        self._open += 1
        return self._rich

    def ended(self) -> None:
        """One bar less; the last one stops the display."""
        self._open -= 1
        if self._open == 0:
            self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was found."""
        if self._rich:
            self._rich.stop()
            self._rich = None

    def say(self, text: str) -> None:
        """Print `text`, which may hold our own colours, above the bars."""
        from rich.text import Text

        assert self._rich
        self._rich.console.print(Text.from_ansi(text), soft_wrap=True)


class BarProgress(Progress):
    """Progress as one bar of the live display."""

    def __init__(self, bars: LiveBars, title: str, total: int | None, unit: str) -> None:
        self._bars = bars
        self._count = Count(total, unit)
        self._rich = bars.open()
        self._task = self._rich.add_task(title, total=total, state="")

    def update(self, done: int, figures: Mapping[str, object] | None = None) -> None:
        """Move the bar."""
        self._count.update(done, figures)
        self._rich.update(self._task, completed=done, state=self._count.text())

    def close(self) -> None:
        """Leave the bar where it stands."""
        self._rich.update(self._task, state=self._count.text(ended=True))
        self._rich.stop_task(self._task)
        self._bars.ended()
