"""The usual splits of text into words, for a megabyte at once.

GPT-2 and rlhfkit's own: `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`.
As rules, words begin wherever the class of the characters changes (letters, digits, spaces, others), but

1. the last of several spaces begins a word, unless the text ends there; if it is U+0020, what comes after
   it belongs to that word;
2. an apostrophe that begins a word takes s, t, re, ve, m, ll or d with it, and what is left begins a word.

GPT-4, Llama 3, and with each digit alone Qwen 2: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?
\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`. Here

1. others take the line ends that follow them with them; of the spaces that are left, those up to the last
   line end are a word, and the last one after that begins a word, to which letters after it belong, and
   others if it is U+0020;
2. letters belong to a single one of the others before them, if that begins a word; apostrophes as above, but
   in any case;
3. of digits every third begins a word.

All of this compares neighbouring bytes, which numpy does for all bytes at once. The classes of the characters
are read out of the tokenizers library, so that the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, normalizers

from rlhfkit.data.tokenizer_checks import WORD_SPLITS

#: As published.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
#: The patterns that `Split` knows.
SPLITS = (GPT2_SPLIT, *WORD_SPLITS)
#: Characters whose classes are read out: the basic plane and the emoji.
KNOWN = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000), *range(0x1F000, 0x20000)]))
#: Finds a character that is not in KNOWN.
UNKNOWN = "[\U00010000-\U0001efff\U00020000-\U0010ffff]"

_SPACE, _LETTER, _DIGIT, _OTHER = range(4)
_CLASSES = {_LETTER: r"[^\p{L}]", _DIGIT: r"[^\p{N}]", _SPACE: r"[^\s]"}
_GPT2_ENDINGS = (b"s", b"t", b"m", b"d", b"re", b"ve", b"ll")
#: Without regard to case, in which \u017f is an s.
_ENDINGS = (*b"s S t T m M d D".split(), *b"re rE Re RE ve vE Ve VE ll lL Ll LL".split(), "\u017f".encode())

Positions = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]


class Split:
    """One of `SPLITS`, for texts that have no character outside KNOWN."""

    def __init__(self, pattern: str) -> None:
        self._is_gpt2 = pattern == GPT2_SPLIT
        self._digits = {GPT2_SPLIT: 0, WORD_SPLITS[0]: 3, WORD_SPLITS[1]: 1}[pattern]
        self._classes = np.full(0x20000, _OTHER, np.uint8)  # by code point
        for number, others in _CLASSES.items():
            members = normalizers.Replace(Regex(others), "").normalize_str(KNOWN)
            self._classes[np.frombuffer(members.encode("utf-32-le"), "<u4")] = number
        self._of_ascii = bytes(self._classes[:128].tolist()).ljust(256, b"\0")

    def words(self, data: bytes, bounds: Positions) -> Positions:
        """Where the words of some texts start, and the end of the last one.

        `data` are the texts end to end in UTF-8, at least one byte; text i goes from bounds[i] to
        bounds[i + 1].
        """
        size = len(data)
        text = np.frombuffer(data + bytes(3), np.uint8)
        kinds = np.frombuffer(data.translate(self._of_ascii), np.uint8)
        if not data.isascii():
            kinds = self._with_others(kinds.copy(), text)
        edges = np.zeros(size + 3, bool)  # where texts begin and end
        edges[bounds] = True
        starts = np.empty(size + 1, bool)
        starts[size] = True
        np.not_equal(kinds[1:], kinds[:-1], out=starts[1:-1])
        starts |= edges[: size + 1]
        if self._is_gpt2:
            self._gpt2(starts, edges, text, kinds)
        else:
            self._gpt4(starts, edges, text, kinds)
        return np.flatnonzero(starts)

    def _with_others(self, kinds: Bytes, text: Bytes) -> Bytes:
        """Put the class of each character outside ASCII at all of its bytes."""
        lead = np.flatnonzero(text >= 0xC0)
        a, b, c, d = (text[lead + i].astype(np.uint32) & mask for i, mask in enumerate((255, 63, 63, 63)))
        three, four = a >= 0xE0, a >= 0xF0
        code = np.where(three, (a & 15) << 12 | b << 6 | c, (a & 31) << 6 | b)
        code = np.where(four, (a & 7) << 18 | b << 12 | c << 6 | d, code)
        kind = self._classes[code]
        kinds[lead] = kinds[lead + 1] = kind
        kinds[lead[three] + 2] = kind[three]
        kinds[lead[four] + 3] = kind[four]
        return kinds

    def _gpt2(self, starts: Flags, edges: Flags, text: Bytes, kinds: Bytes) -> None:
        space = kinds == _SPACE
        joined = ~space[1:] & (text[: len(kinds) - 1] == ord(" ")) & ~edges[1 : len(kinds)]
        starts[1:-1] &= ~joined
        starts[_to_lead(np.flatnonzero(_before_more(space, edges)), text)] = True
        _contractions(_GPT2_ENDINGS, starts, edges, text)

    def _gpt4(self, starts: Flags, edges: Flags, text: Bytes, kinds: Bytes) -> None:
        size = len(kinds)
        space = kinds == _SPACE
        letter = kinds == _LETTER
        other = kinds == _OTHER
        line_end = (text[:size] == ord("\n")) | (text[:size] == ord("\r"))
        # Line ends after others.
        after = np.flatnonzero(line_end[1:] & other[:-1] & ~edges[1:size]) + 1
        stops = _ends(line_end, edges)
        starts[after] = False
        starts[stops[np.searchsorted(stops, after, "right")]] = True
        # The last line end of each run of spaces.
        at = np.flatnonzero(line_end)
        run = np.searchsorted(_ends(space, edges), at, "right")
        starts[at[np.append(run[1:], -1) != run] + 1] = True
        # The last space after it.
        last = np.flatnonzero(_before_more(space, edges) & ~line_end)
        starts[_to_lead(last, text)] = True
        joins = letter[last + 1] | (other[last + 1] & (text[last] == ord(" ")))
        starts[last[joins] + 1] = False
        # Letters after a single one of the others.
        first = np.flatnonzero(letter[1:] & other[:-1] & ~edges[1:size]) + 1
        starts[first[starts[_to_lead(first - 1, text)]]] = False
        _contractions(_ENDINGS, starts, edges, text)
        # Digits, by characters.
        at = np.flatnonzero((kinds == _DIGIT) & ((text[:size] & 0xC0) != 0x80))
        count = np.arange(len(at))
        place = count - np.maximum.accumulate(np.where(starts[at], count, 0))
        starts[at[place % self._digits == 0]] = True


def _ends(members: Flags, edges: Flags) -> Positions:
    """Where runs of members end, and all edges (of which the last is the end of all)."""
    ends = edges[: len(members) + 1].copy()
    ends[1:-1] |= members[:-1] & ~members[1:]
    return np.flatnonzero(ends)


def _before_more(space: Flags, edges: Flags) -> Flags:
    """Spaces (their last bytes) right before something else of the same text."""
    return np.append(space[:-1] & ~space[1:] & ~edges[1 : len(space)], False)


def _to_lead(at: Positions, text: Bytes) -> Positions:
    """From the last bytes of characters to their first ones."""
    for _ in range(3):
        at = at - ((text[at] & 0xC0) == 0x80)
    return at


def _contractions(endings: Iterable[bytes], starts: Flags, edges: Flags, text: Bytes) -> None:
    quotes: Positions = np.flatnonzero(text[:-3] == ord("'"))
    quotes = quotes[starts[quotes] & ~edges[quotes + 1]]
    one: Any = text[quotes + 1]
    two = np.where(edges[quotes + 2], 0, text[quotes + 2])
    for ending in endings:
        found = one == ending[0]
        if len(ending) == 2:
            found &= two == ending[1]
        at = quotes[found]
        starts[at + 1] = False
        starts[at + 1 + len(ending)] = True
