"""The tokenizers library behind one small surface: ids of pieces of text, with special tokens on or off."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TypeVar

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from rlhfkit.data.marks import Kind, Piece
from rlhfkit.data.tokenizer_checks import GROWTH, byte_level, try_patterns
from rlhfkit.data.tokenizer_files import TokenizerJson
from rlhfkit.errors import DataError, RlhfkitError

T = TypeVar("T")
#: Token ids, and the characters that each stands for.
Encoded = tuple[list[int], list[tuple[int, int]]]

#: Encoded once at the start, so that what cannot work fails then.
_SAMPLE = "The 3 quick\n\n  brown foxes' ... \t\u00e9\u4f60\U0001f600 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"


class Coder:
    """Encodes and decodes; `special` are tokens of the vocabulary that it does not list as special itself."""

    def __init__(self, data: bytes, parsed: TokenizerJson, special: Iterable[str], where: str) -> None:
        self._where = where
        self._is_nfc = isinstance(parsed.normalizer, dict) and parsed.normalizer.get("type") == "NFC"
        self._lock = threading.Lock()
        self._backend: Tokenizer = guarded(lambda: Tokenizer.from_str(data.decode()), where)
        try_patterns(data, parsed, where)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._model = self._backend.model
        if isinstance(self._model, BPE):
            self._model.dropout = None
        self._backend.add_special_tokens([AddedToken(name, special=True) for name in special])
        #: None: every byte has a token. Else the bytes that have one; the library would drop the others.
        self._known_bytes: bytes | None = None
        self._try()
        if byte_level(parsed) and parsed.model.unk_token is None:
            known = bytes(b for b, c in byte_alphabet().items() if c in parsed.model.ids())
            self._known_bytes = known if len(known) < 256 else None

    @property
    def complete(self) -> bool:
        """Whether every text has tokens."""
        return self._known_bytes is None

    def encode(self, text: str, *, special: bool) -> Encoded:
        """A whole text; `special` says whether special tokens spelt in it count."""
        if self._known_bytes is not None and (lost := text.encode().translate(None, self._known_bytes)):
            raise DataError(f"has no token for byte 0x{lost[0]:02X} of the text", where=self._where)
        with self._lock:
            self._backend.encode_special_tokens = not special
            encoding = guarded(lambda: self._backend.encode(text, add_special_tokens=False), self._where)
        return encoding.ids, encoding.offsets

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Whole texts as text, on all cores; only if `complete`."""
        assert self.complete
        with self._lock:
            self._backend.encode_special_tokens = True
            encodings = guarded(
                lambda: self._backend.encode_batch_fast(texts, add_special_tokens=False), self._where
            )
        return [encoding.ids for encoding in encodings]

    def word(self, word: str) -> list[int]:
        """Ids of one word of the split of byte-level BPE: the model alone."""
        if word.isascii() and word.isprintable():  # the usual case
            letters = word.replace(" ", _LETTERS[0x20])
        else:
            letters = "".join(map(_LETTERS.__getitem__, word.encode()))
        return [token.id for token in self._model.tokenize(letters)]

    @cached_property
    def normalize(self) -> Callable[[str], str] | None:
        """What the tokenizer does to a text before it is split; None if nothing."""
        normalizer = self._backend.normalizer
        if normalizer is None:
            return None
        call: Callable[[str], str] = normalizer.normalize_str
        # Letters of ASCII are in this form already.
        return (lambda text: text if text.isascii() else call(text)) if self._is_nfc else call

    def piece(self, piece: Piece, control: AbstractSet[int]) -> Encoded:
        """A piece of a longer text; offsets count from where that starts. No text becomes a `control` id."""
        if piece.kind is Kind.SPELT:
            ids = self._spelt(piece, control)
            return ids, [(piece.base, piece.base + len(piece.text))] * len(ids)
        special = piece.kind is Kind.CHAT
        if piece.middle and self._adds_space:
            # After a line end the library puts no space before the text; the line end is taken away again.
            ids, offsets = self.encode("\n" + piece.text, special=special)
            n = len(self._line)
            if ids[:n] == self._line:
                return ids[n:], [(a + piece.base - 1, b + piece.base - 1) for a, b in offsets[n:]]
        ids, offsets = self.encode(piece.text, special=special)
        return ids, [(a + piece.base, b + piece.base) for a, b in offsets] if piece.base else offsets

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of token ids."""
        return guarded(
            lambda: str(self._backend.decode(list(ids), skip_special_tokens=skip_special)), self._where
        )

    def _spelt(self, piece: Piece, control: AbstractSet[int]) -> list[int]:
        """Ids of text that spells a special token, without that token."""
        lead = self._plainly("\n") if piece.middle and self._adds_space else []
        ids = self._plainly("\n" + piece.text) if lead else self._plainly(piece.text)
        ids = ids[len(lead) :] if ids[: len(lead)] == lead else self._plainly(piece.text)
        if control.isdisjoint(ids):
            return ids
        # The model itself knows the token as a word: spell it letter by letter.
        letters = (self.piece(Piece(c, 0, Kind.TEXT, True), control)[0] for c in piece.text)
        return [i for ids in letters for i in ids if i not in control]

    def _plainly(self, text: str) -> list[int]:
        """Ids without any added tokens: the normaliser, the split and the model alone."""
        backend = self._backend

        def call() -> list[int]:
            normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
            words = (
                [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]
                if backend.pre_tokenizer
                else [normal]
            )
            return [token.id for word in words for token in backend.model.tokenize(word)]

        return guarded(call, self._where)

    def _try(self) -> None:
        """Encode a little, and learn how the tokenizer treats the start of a text."""
        plain, _ = self.encode(_SAMPLE, special=False)
        if len(plain) > GROWTH * len(_SAMPLE.encode()):
            raise DataError(f"makes {len(plain)} tokens of {len(_SAMPLE)} characters", where=self._where)
        full = guarded(lambda: self._backend.encode(_SAMPLE, add_special_tokens=True), self._where).ids
        at = next((i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain), None)
        if at is None or len(full) > len(plain) + 8:
            raise DataError("its post-processor changes the text's tokens", where=self._where)
        #: what the tokenizer's own post-processor puts before and after a text
        self.prefix_ids, self.suffix_ids = full[:at], full[at + len(plain) :]
        self._line, _ = self.encode("\n", special=False)
        alone, _ = self.encode("a", special=False)
        self._adds_space = self.encode("\na", special=False)[0] != [*self._line, *alone]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


_LETTERS = [letter for _, letter in sorted(byte_alphabet().items())]


def guarded(call: Callable[[], T], where: str) -> T:
    """Call the tokenizers library; its failures, Rust panics included, become DataErrors."""
    try:
        return call()
    except (RlhfkitError, MemoryError):
        raise
    except BaseException as e:
        # A Rust panic is no Exception, but neither are the signals of the command line.
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise DataError(f"tokenizer: {str(e) or type(e).__name__}", where=where) from None
