"""Telling special tokens that a chat template writes from text that merely spells them.

Before rendering, every special token spelt in a message is put between two characters that no message
contains; after rendering, what stands between them is encoded as text. transformers does the same under
`sanitize_control_tokens=True`, whose ids are matched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import count
from typing import Any, NamedTuple


class Kind(Enum):
    """How a piece of a rendered chat or of a text is to be encoded."""

    CHAT = "special tokens count"
    TEXT = "special tokens are text"
    SPELT = "the whole piece spells a special token and is text"


class Piece(NamedTuple):
    """A stretch of text, where it starts, and whether text stands before it."""

    text: str
    base: int
    kind: Kind
    middle: bool


class Marks:
    """The characters chosen for one conversation."""

    def __init__(self, control: re.Pattern[str], characters: str) -> None:
        self.open, self.close, self.begin, self.finish = list(characters)
        self._control = control
        self._marked = re.compile(f"{self.open}({control.pattern}){self.close}|[{self.open}{self.close}]")
        #: finds special tokens of the template itself as group "token"
        self.genuine = re.compile(
            f"{self.open}(?:{control.pattern}){self.close}|(?P<token>{control.pattern})"
        )

    def mark(self, value: Any) -> Any:
        """The value with every special token marked that a string inside it spells."""
        if isinstance(value, str):
            return self._control.sub(f"{self.open}\\g<0>{self.close}", value)
        if isinstance(value, Mapping):
            return {key: self.mark(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.mark(inner) for inner in value]
        return value

    def split(self, text: str, *, middle: bool = False) -> list[Piece]:
        """Rendered text as pieces; `middle` says that text stands before it."""
        pieces: list[Piece] = []
        at = 0
        for found in self._marked.finditer(text):
            pieces.append(Piece(text[at : found.start()], at, Kind.CHAT, middle or bool(pieces)))
            pieces.append(Piece(found[1] or "", found.start() + 1, Kind.SPELT, True))
            at = found.end()
        pieces.append(Piece(text[at:], at, Kind.CHAT, middle or bool(pieces)))
        return [piece for piece in pieces if piece.text]


class Marker:
    """Finds the special tokens that text spells."""

    def __init__(self, tokens: Iterable[str]) -> None:
        longest_first = sorted(set(tokens), key=lambda token: (-len(token), token))
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._usual = Marks(self._control, "".join(map(chr, range(0xF0000, 0xF0004))))

    def marks(self, messages: Sequence[Mapping[str, Any]]) -> Marks:
        """Marks whose characters none of the messages contains."""
        text = str(list(_strings(messages)))
        usual = self._usual
        if not any(c in text for c in (usual.open, usual.close, usual.begin, usual.finish)):
            return usual
        free = (chr(i) for i in count(0xF0004) if chr(i) not in text)
        return Marks(self._control, "".join(next(free) for _ in range(4)))

    def spelt(self, text: str) -> bool:
        """Whether the text spells a special token."""
        return self._control.search(text) is not None

    def split(self, text: str, *, middle: bool = False) -> list[Piece]:
        """Plain text as pieces, those that spell a special token apart."""
        pieces: list[Piece] = []
        at = 0
        for found in self._control.finditer(text):
            pieces.append(Piece(text[at : found.start()], at, Kind.TEXT, middle or bool(pieces)))
            pieces.append(Piece(found[0], found.start(), Kind.SPELT, middle or found.start() > 0))
            at = found.end()
        pieces.append(Piece(text[at:], at, Kind.TEXT, middle or bool(pieces)))
        return [piece for piece in pieces if piece.text]


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)
