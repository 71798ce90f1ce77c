"""Rank on a terminal, line by line.

Everything happens on /dev/tty, so standard input may be the data and standard output a pipe. Lines are read
as the terminal gives them, with its own editing; that works over any connection, and a resized window is
drawn again at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TextIO

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlhfkit.errors import InputMissing, Interrupted, RlhfkitError
from rlhfkit.ui.ranking_session import FLAGS, Answer, Conflict, Refused, Session, Shown, Tiers, Turns
from rlhfkit.ui.terminal import safe

LETTERS = "abcdefghi"
#: Columns that a completion needs to be readable beside others.
NARROWEST = 34
_RESIZE = getattr(signal, "SIGWINCH", None)

HELP = """\
[bold]b d=a c[/]    best to worst, = for a tie; with digits: [bold]2 4=1 3[/] or [bold]2 4t1 3[/]
[bold]s[/]          skip: no ranking of this item
[bold]u[/]          back to the item before; a new ranking replaces the old one
[bold]f[/], [bold]x[/]       flag the item; none is acceptable. [bold]f unsafe[/], [bold]f unclear prompt[/]
[bold]r b 6[/]      rate b with 6 of 7
[bold]n TEXT[/]     a note; [bold]n[/] alone takes it away
[bold]q[/]          stop; everything is kept, and the same command goes on
[bold]w[/]          stop for good, and write what is ranked so far
Flags, ratings and notes come before the ranking, which saves and goes on."""


class _Redraw(Exception):
    """The window has another size."""


@dataclass
class _Draft:
    """What has been said of the item that is shown."""

    flags: tuple[str, ...] = ()
    ratings: list[int | None] = field(default_factory=list)
    note: str = ""
    since: float = field(default_factory=time.monotonic)
    seconds: float = 0.0  # of an earlier look at the item

    def answer(self, tiers: Tiers | None) -> Answer:
        seconds = min(self.seconds + time.monotonic() - self.since, 86_400.0)
        return Answer(tiers, seconds, self.flags, tuple(self.ratings), self.note)


def rank_on_terminal(session: Session, device: str = "/dev/tty") -> None:
    """Show items until all are decided or the person writes `w`.

    Raises Interrupted (130) for `q` and the end of input, InputMissing (66) where there is no terminal.
    """
    try:
        terminal = os.open(device, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        hint = "--web uses a browser"
        raise InputMissing("there is no terminal to rank on", where="--tty", hint=hint) from None
    try:
        with open(terminal, "w", encoding="utf-8", errors="replace", closefd=False) as out:
            _Dialogue(session, terminal, out).run()
    finally:
        os.close(terminal)


class _Dialogue:
    def __init__(self, session: Session, descriptor: int, out: TextIO) -> None:
        self._session = session
        self._descriptor = descriptor
        self._out = out
        self._pending = b""
        self._said = ""  # what the last line led to, as markup
        self._finished = False

    def run(self) -> None:
        """Item after item; at the end a last chance to go back."""
        shown = self._session.next()
        while shown is not None or (shown := self._last_chance()) is not None:
            shown = self._item(shown)
            if self._finished:
                return

    def _last_chance(self) -> Shown | None:
        while True:
            line = self._ask(None, _Draft())
            key = self._session.before(None)
            if line == "u" and key is not None:
                return self._session.show(key)
            if line in ("", "w"):
                return None
            if line == "q":
                raise Interrupted(signal.SIGINT, "stopped")

    def _item(self, shown: Shown) -> Shown | None:
        """One item until something has become of it; returns what to show next."""
        old = shown.answer
        draft = _Draft(ratings=[None] * len(shown.order))
        if old is not None:
            draft = _Draft(tuple(old.flags), list(old.ratings), old.note, seconds=old.seconds)
        while True:
            line = self._ask(shown, draft)
            self._said = ""
            word, _, rest = line.partition(" ")
            if line == "u":
                key = self._session.before(shown.item.key if shown.answer else None)
                if key is not None:
                    return self._session.show(key)
                self._said = "there is no item before this one"
            elif line == "q":
                raise Interrupted(signal.SIGINT, "stopped")
            elif line == "w":
                self._finished = True
                return None
            elif word in ("x", "r", "n", "?") or (word == "f" and rest in ("", *FLAGS)):
                self._remark(word, rest.strip(), shown, draft)
            elif line:
                try:
                    tiers = None if line == "s" else read_tiers(line, len(shown.order))
                    return self._decide(shown, draft.answer(tiers))
                except (Refused, RlhfkitError) as problem:
                    self._said = escape(f"not saved: {problem}")

    def _decide(self, shown: Shown, answer: Answer) -> Shown | None:
        try:
            self._session.decide(shown.item.key, shown.version, secrets.token_hex(8), answer)
        except Conflict:
            self._said = "that item was decided elsewhere, which counts; here is the next one"
        return self._session.next()

    def _remark(self, word: str, rest: str, shown: Shown, draft: _Draft) -> None:
        """Take a flag, a rating or a note into the draft."""
        if word == "?":
            self._said = HELP
        elif word == "n":
            draft.note = rest
        elif word in "fx":
            flag = "none acceptable" if word == "x" else rest or "flagged"
            if flag in draft.flags:
                draft.flags = tuple(other for other in draft.flags if other != flag)
            else:
                draft.flags = (*draft.flags, flag)
        else:
            place, _, rating = rest.partition(" ")
            index = _place(place)
            if index is None or index >= len(shown.order) or rating.strip() not in tuple("1234567"):
                self._said = "a rating looks like r b 6"
            else:
                draft.ratings[index] = int(rating)

    # -- the terminal --------------------------------------------------------------------------------------

    def _ask(self, shown: Shown | None, draft: _Draft) -> str:
        """Draw the item and read a line; draw again whenever the window changes."""
        while True:
            self._draw(shown, draft)
            self._out.flush()
            with contextlib.suppress(_Redraw):
                return self._line()

    def _line(self) -> str:
        with _resizes():
            while b"\n" not in self._pending:
                piece = os.read(self._descriptor, 4096)
                if not piece:
                    raise Interrupted(signal.SIGINT, "stopped at the end of input")
                self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _draw(self, shown: Shown | None, draft: _Draft) -> None:
        try:
            columns, lines = os.get_terminal_size(self._descriptor)
        except OSError:
            columns = lines = 0
        width = columns or 80
        console = Console(
            file=self._out, force_terminal=True, width=width, height=lines or 24, highlight=False
        )
        console.clear()
        count = self._session.count()
        console.rule(f"{escape(safe(self._session.rater))}: {count}", align="left", style="dim")
        if shown is None:
            console.print("All done. [bold]Enter[/] writes the rankings; [bold]u[/] goes back. ", end="")
            return
        console.print(Padding(_text(shown.item.prompt), (0, 0, 1, 0)))
        console.print(_completions(shown, draft, width))
        for remark in _remarks(shown, draft):
            console.print(remark)
        if self._said:
            console.print(self._said)
        letters = f"{LETTERS[0]}-{LETTERS[len(shown.order) - 1]}"
        console.print(f"[bold]rank {letters}[/], best first [dim](? for help)[/] ", end="")


@contextlib.contextmanager
def _resizes() -> Iterator[None]:
    """Inside, a change of the window's size raises _Redraw. (Signals reach the main thread alone.)"""
    if _RESIZE is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def redraw(signum: int, frame: FrameType | None) -> None:
        raise _Redraw

    before = signal.signal(_RESIZE, redraw)
    try:
        yield
    finally:
        signal.signal(_RESIZE, before)


def _text(turns: Turns) -> Text:
    """Texts with everything that could command the terminal written out."""
    text = Text()
    for role, words in turns:
        if role:
            text.append(f"{safe(role)}\n", style="bold dim")
        words = words.replace("\r\n", "\n").expandtabs(4)
        if words.strip():
            text.append(safe(words, keep="\n"))
        else:
            text.append("(empty)", style="italic dim")
        text.append("\n")
    text.rstrip()
    return text


def _completions(shown: Shown, draft: _Draft, width: int) -> RenderableType:
    """Side by side where there is room, else one below the other."""
    panels = []
    for place, turns in enumerate(shown.completions):
        rating = draft.ratings[place]
        title = f"[bold]{LETTERS[place]}[/] [dim]{place + 1}[/]" + (f" rated {rating}" if rating else "")
        panels.append(Panel(_text(turns), title=title, title_align="left"))
    columns = max(1, min(len(panels), width // NARROWEST))
    table = Table.grid(expand=True)
    for _ in range(columns):
        table.add_column(ratio=1)
    for first in range(0, len(panels), columns):
        table.add_row(*panels[first : first + columns])
    return table


def _remarks(shown: Shown, draft: _Draft) -> Iterator[Text]:
    if shown.answer is not None:
        tiers = shown.answer.tiers
        was = "skipped" if tiers is None else " ".join("=".join(LETTERS[p] for p in tier) for tier in tiers)
        yield Text(f"decided: {was}", style="yellow")
    if draft.flags:
        yield Text(f"flags: {', '.join(draft.flags)}", style="yellow")
    if draft.note:
        yield Text(f"note: {safe(draft.note)}", style="yellow")


# -- reading a ranking -------------------------------------------------------------------------------------


def _place(word: str) -> int | None:
    """The place that a letter or a digit names."""
    word = word.lower()
    if len(word) == 1 and word in LETTERS:
        return LETTERS.index(word)
    return int(word) - 1 if len(word) == 1 and word in "123456789" else None


def read_tiers(line: str, count: int) -> Tiers:
    """The tiers that `b=d a c` or `2t4 1 3` means. A single one left out comes last. Raises Refused."""
    tiers: Tiers = []
    tie = False
    for sign in re.sub(r"[\s,>]", "", line.lower()):
        if sign in "=t":
            if not tiers or tie:
                raise Refused("= stands between two completions")
            tie = True
            continue
        place = _place(sign)
        if place is None or place >= count:
            raise Refused(f"{safe(sign)!r} is no completion; ? for help")
        if any(place in tier for tier in tiers):
            raise Refused(f"{sign} stands twice")
        tiers[-1].append(place) if tie else tiers.append([place])
        tie = False
    if tie:
        raise Refused("= stands between two completions")
    named = [place for tier in tiers for place in tier]
    left = [place for place in range(count) if place not in named]
    if len(left) == 1:
        tiers.append(left)
    elif left:
        letters = " ".join(LETTERS[place] for place in left)
        raise Refused(f"left out: {letters}")
    return tiers
