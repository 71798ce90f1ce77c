"""Talking to a person: text made safe for a terminal, notes, tables and progress on standard error."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TextIO

from rlhfkit.context import Progress, Reporter
from rlhfkit.ui.progress import BarProgress, LineProgress, LiveBars

# Letters and marks that draw nothing, though Unicode does not count them as controls: fillers, the
# grapheme joiner, Mongolian selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u180f\u3164\uffa0")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_HIDDEN_SELECTORS = range(0xE0100, 0xE01F0)


def safe(text: str, keep: str = "") -> str:
    r"""`text` with everything that could command or deceive a terminal written out, as in `\x1b`.

    That is C0 and C1 controls, DEL, bidirectional and zero-width characters, line separators, lone
    surrogates and unassigned code points. Characters in `keep` (such as "\n") stay.
    """
    if text.isprintable() and text.isascii():
        return text
    return "".join(
        char if char in keep or not _is_hidden(char) else escaped_char(char, python=True) for char in text
    )


def safe_json(line: str) -> str:
    r"""A line of JSON for a terminal: hidden characters become `\uXXXX`, which any parser reads back."""
    if line.isprintable() and line.isascii():
        return line
    return "".join(
        char if char == "\n" or not _is_hidden(char) else escaped_char(char, python=False) for char in line
    )


def _is_hidden(char: str) -> bool:
    if char.isprintable():
        return char in _BLANK or ord(char) in _HIDDEN_SELECTORS
    import unicodedata

    return unicodedata.category(char) != "Zs"  # a no-break or an ideographic space is only a space


def escaped_char(char: str, *, python: bool) -> str:
    """One character as an escape of Python (`\\x1b`) or of JSON (`\\u001b`)."""
    code = ord(char)
    if not python:
        units = char.encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
    if char in _NAMED:
        return _NAMED[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def display_width(text: str) -> int:
    """Columns that `text` takes on a terminal: wide East Asian characters two, combining marks none."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: text to the left, columns that hold only numbers to the right."""
    cells = [[safe(cell) for cell in row] for row in rows]
    head = [safe(column) for column in columns]
    widths = [max(map(display_width, column)) for column in zip(head, *cells, strict=True)]
    numeric = [
        bool(cells) and all(cell[:1].isdigit() or cell[:1] in "+-." for cell in column)
        for column in zip(*cells, strict=True)
    ] or [False] * len(head)

    def line(row: Sequence[str]) -> str:
        padded = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            space = " " * (width - display_width(cell))
            padded.append(space + cell if right else cell + space)
        return "  ".join(padded).rstrip()

    return [line(head), line(["-" * width for width in widths]), *map(line, cells)]


class TerminalReporter(Reporter):
    """Talk on a text stream: live bars when it is a terminal, a plain line now and then otherwise.

    `silent` drops all of it (`--quiet`, or another process than the first). `started` says whether a
    progress display has begun: until then a run has nothing that would be worth saving.
    """

    def __init__(
        self, stream: TextIO | None, *, silent: bool = False, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.silent = silent
        self._stream = None if silent else stream
        self.live = self._stream is not None and self._stream.isatty() and environ.get("TERM") != "dumb"
        self.colour = self.live and not environ.get("NO_COLOR")
        self.started = False
        self._bars = LiveBars(stream)

    def note(self, text: str) -> None:
        """One line."""
        self._say(safe(text))

    def warn(self, text: str) -> None:
        """One line that begins with "warning:"."""
        self._say("warning: " + safe(text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A titled table."""
        self._say("\n".join([safe(title), *format_table(columns, rows)]))

    def masked_text(self, title: str, pieces: Sequence[tuple[str, bool]]) -> None:
        """A text whose trained pieces stand out: green, or between [[ ]] where there is no colour."""
        shown = []
        for piece, trained in pieces:
            text = safe(piece, keep="\n")
            if self.colour:
                text = f"\x1b[1;32m{text}\x1b[0m" if trained else f"\x1b[2m{text}\x1b[0m"
            elif trained:
                text = f"[[{text}]]"
            shown.append(text)
        self._say(f"{safe(title)}\n{''.join(shown)}")

    def progress(self, title: str, total: int | None, unit: str) -> Progress:
        """A bar on a terminal, else lines."""
        self.started = True
        if self._stream is None:
            return Progress()
        if self.live:
            return BarProgress(self._bars, safe(title), total, unit)
        return LineProgress(self.note, title, total, unit)

    def close(self) -> None:
        """End whatever is still live, so that the terminal is left as it was found."""
        self._bars.stop()

    def _say(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            if self._bars.running:
                self._bars.say(text)
            else:
                self._stream.write(text + "\n")
                self._stream.flush()
        except OSError:
            self._stream = None  # nobody listens any more; the work itself goes on
