"""A faster way to the same ids, for byte-level BPE with GPT-2's split (what rlhfkit trains, and GPT-2).

The split makes words, and words repeat: each one is encoded once by the tokenizers library and remembered.
The split itself is a regular expression of Python's, with the character classes read out of the library, so
that the two cannot disagree about a letter. Measured on English text: 10 to 17 MB/s a core against 2.7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Regex, normalizers

from rlhfkit.data.shards import token_dtype
from rlhfkit.data.tokenizer import Tokenizer

#: Words remembered, about 200 bytes each; when there are more, all are forgotten.
MOST_WORDS = 200_000
#: Longer pieces (rulers, base64) are not worth remembering.
LONGEST_WORD = 48

#: Characters whose classes are read out: the basic plane and the emoji. Text with others goes the slow way.
_KNOWN = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000), *range(0x1F000, 0x20000)]))
_UNKNOWN = re.compile("[\U00010000-\U0001efff\U00020000-\U0010ffff]")
_TRIAL = (
    "I'll say: they'RE 'sharp'... it's 42\u00bd times 3,141.59!\n\n  \tTwo  spaces \r\n\x1c\u00a0\u3000"
    "na\u00efve \u0421\u043b\u043e\u0432\u043e \u4f60\u597d\uff0c\u0967\u0968 "
    "\u0e01\u0e34 e\u0301 \U0001f600\u200d\u2642\ufe0f  "
)


class PieceEncoder(dict[str, bytes]):
    """Word -> its token ids as bytes of the shard's type; `encode` looks up all words of a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._split = _gpt2_split()

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self._tokenizer.encode(word), dtype=self._dtype).tobytes()
        if len(word) <= LONGEST_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def encode(self, text: str) -> bytes:
        """Token ids of a text, as bytes of the shard's type."""
        if not text.isascii() and _UNKNOWN.search(text):
            return np.array(self._tokenizer.encode(text), dtype=self._dtype).tobytes()
        return b"".join(map(self.__getitem__, self._split.findall(text)))


def piece_encoder(tokenizer: Tokenizer) -> PieceEncoder | None:
    """A fast encoder, if the tokenizer is of the kind it works for and agrees with it on a trial."""
    if not tokenizer.splits_like_gpt2:
        return None
    encoder = PieceEncoder(tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)
    agrees = encoder.encode(_TRIAL) == np.array(tokenizer.encode(_TRIAL), dtype=dtype).tobytes()
    return encoder if agrees else None


def _gpt2_split() -> re.Pattern[str]:
    """GPT-2's `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`."""
    letters, digits, spaces = (_class(name) for name in (r"\p{L}", r"\p{N}", r"\s"))
    return re.compile(
        f"'(?:[stmd]|re|ve|ll)| ?[{letters}]+| ?[{digits}]+| ?[^{spaces}{letters}{digits}]+"
        f"|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    )


def _class(name: str) -> str:
    """What the library takes for `name`, as the inside of a character class."""
    members = normalizers.Replace(Regex(f"[^{name[0]}{name[1:]}]"), "").normalize_str(_KNOWN)
    ranges = []
    for start, end in _runs([ord(c) for c in members]):
        ranges.append(f"\\U{start:08x}" + (f"-\\U{end:08x}" if end > start else ""))
    return "".join(ranges)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    start = before = numbers[0]
    for number in [*numbers[1:], -1]:
        if number != before + 1:
            yield start, before
            start = number
        before = number
