"""What surrounds a run: who listens, how it was started, whether somebody asked it to stop.

Stages and the engine talk through this module, so that they never touch standard streams, signals or
rich. The default reporter is silent: `import rlhfkit` and calling a command from Python prints nothing.
The command line installs a terminal reporter and signal handlers (`rlhfkit.cli`, `rlhfkit.ui`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rlhfkit.errors import Interrupted


class Progress:
    """A running count with a few figures beside it; the silent default."""

    def update(self, done: int, figures: Mapping[str, object] | None = None) -> None:
        """Say that `done` of the total units are finished, with figures such as loss or tokens/s."""

    def close(self) -> None:
        """The work has ended, well or not."""


class Reporter:
    """Where talk goes. This one drops it."""

    def note(self, text: str) -> None:
        """A plain line of information."""

    def warn(self, text: str) -> None:
        """Something the user should look at, though the run goes on."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table for a person."""

    def masked_text(self, title: str, pieces: Sequence[tuple[str, bool]]) -> None:
        """Text in pieces; True marks the pieces that are trained on."""

    def progress(self, title: str, total: int | None, unit: str) -> Progress:
        """Start a progress display; `total` None means unknown."""
        return Progress()


@dataclass(frozen=True)
class Invocation:
    """How this run was started; written to run.json."""

    argv: tuple[str, ...] = ()
    #: setting name -> "flag" | "environment" | "file" | "default"
    sources: Mapping[str, str] = field(default_factory=dict)


class _State:
    reporter = Reporter()
    invocation = Invocation()
    stop_signal: int | None = None
    interruptible = False


_state = _State()


def reporter() -> Reporter:
    """The reporter in force."""
    return _state.reporter


def note(text: str) -> None:
    """Tell the user something."""
    _state.reporter.note(text)


def warn(text: str) -> None:
    """Warn the user."""
    _state.reporter.warn(text)


def invocation() -> Invocation:
    """How the current run was started."""
    return _state.invocation


def request_stop(signum: int) -> None:
    """Ask the running loop to save and stop at its next step boundary (called by signal handlers)."""
    _state.stop_signal = signum


def stop_requested() -> int | None:
    """The signal that asked the run to stop, or None."""
    return _state.stop_signal


@contextmanager
def interruptible(allowed: bool = True) -> Iterator[None]:
    """Within, whoever waits for something outside may leave at once when the run is asked to stop.

    For a stretch of a step after which nothing has changed yet, so that the step can be done again.
    """
    before, _state.interruptible = _state.interruptible, allowed
    try:
        yield
    finally:
        _state.interruptible = before


def leave_if_asked() -> None:
    """Called while waiting: raises Interrupted after a request to stop, where that is allowed."""
    signum = _state.stop_signal
    if signum is not None and _state.interruptible:
        raise Interrupted(signum, f"stopped by signal {signum}")


@contextmanager
def surroundings(reporter: Reporter, invocation: Invocation) -> Iterator[None]:
    """Install a reporter and an invocation for one run; the former ones come back afterwards."""
    before = _state.reporter, _state.invocation, _state.stop_signal
    _state.reporter, _state.invocation, _state.stop_signal = reporter, invocation, None
    try:
        yield
    finally:
        _state.reporter, _state.invocation, _state.stop_signal = before
