"""A faster way to the same ids, where one is known: for byte-level BPE with one of the usual splits.

For those of GPT-2 (and rlhfkit's own tokenizers), Llama 3 and Qwen it is rlhfkit's own:
`rlhfkit.data.split` makes the words and `rlhfkit.data.pieces` remembers them. For GPT-4o's (gpt-oss,
Llama 4) it is tiktoken, if that is installed and `rlhfkit.data.ranks` vouches for it. Measured on one core,
MB/s: own 25, tiktoken 12, the tokenizers library 2.5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from rlhfkit.data.pieces import PieceEncoder
from rlhfkit.data.ranks import encode_by_ranks, mergeable_ranks, read_differently
from rlhfkit.data.split import GPT2_SPLIT, KNOWN, SPLITS, UNKNOWN, Split
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.data.tokenizer_checks import steps

Encode = Callable[[Sequence[str]], list[bytes]]
#: GPT-4o's split, as published, and the classes in it.
O200K_SPLIT = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_O200K_CLASSES = (r"\p{L}", r"\p{N}", r"\s", r"\p{M}", r"\p{Lu}\p{Lt}", r"\p{Lm}\p{Lo}", r"\p{Ll}")
#: Every fast way must agree with the plain one on these.
_TRIALS = (
    "I'll say: they'RE 'sharp'... it's 42\u00bd times 3,141.59! $1234567 x==y; f(a,b)->c\t#1\n\n  \tTwo  "
    "spaces \r\n\x1c\u00a0\u3000na\u00efve \u0421\u043b\u043e\u0432\u043e \u4f60\u597d\uff0c\u0967\u0968 "
    "\u0e01\u0e34 e\u0301 \U0001f600\u200d\u2642\ufe0f  ",
    "'s 'S ''ll 'ver x'\u017f 're\n'd 'm\r\n\r\n't '\u212a\n \n  \n\n a\n\t\tb   \n",
    "".join(map(chr, range(0x180))),
    " ".join(map(chr, range(0x80))),
    "<|end|> <|endoftext|><|im_start|>user\n</s><pad>[PAD]",
    "a" * 70 + "=" * 70 + " " * 70 + "\n" * 20 + "0123456789" * 5 + "ab" * 30,
    " ",
    "",
)


class FastEncoder:
    """Texts to ids as bytes of the shard's type; a text that the fast way cannot take goes the plain way."""

    def __init__(self, tokenizer: Tokenizer, encode: Encode, dtype: np.dtype[Any], strange: str = "") -> None:
        """`encode` takes normalised texts without characters that are unknown here or in `strange`."""
        self._tokenizer, self._encode, self._dtype = tokenizer, encode, dtype
        self._normalize = tokenizer.coder.normalize
        names = set(tokenizer.encoded_apart)
        names |= set(map(self._normalize, names)) if self._normalize is not None else set()
        self._names = re.compile("|".join(map(re.escape, sorted(names)))) if names else None
        self._strange = re.compile(f"[{strange}]|{UNKNOWN}" if strange else UNKNOWN)

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Token ids of each text."""
        plainly: dict[int, bytes] = {}
        normal: list[str] = []
        for place, text in enumerate(texts):
            normal_text = text if self._normalize is None else self._normalize(text)
            if self._takes(normal_text) and (normal_text is text or self._takes(text)):
                normal.append(normal_text)
            else:
                plainly[place] = np.array(self._tokenizer.encode(text), dtype=self._dtype).tobytes()
        fast = iter(self._encode(normal))
        return [plainly[place] if place in plainly else next(fast) for place in range(len(texts))]

    def _takes(self, text: str) -> bool:
        if self._names is not None and self._names.search(text) is not None:
            return False
        return text.isascii() or self._strange.search(text) is None


def fast_encoder(tokenizer: Tokenizer, dtype: np.dtype[Any], *, much: bool = True) -> FastEncoder | None:
    """The fastest encoder that is known to give this tokenizer's ids, if there is one.

    `much` says that enough text comes to repay the checks that tiktoken needs (0.5 s).
    """
    pattern = _split_pattern(tokenizer)
    if pattern in SPLITS:
        pieces = PieceEncoder(Split(pattern), tokenizer.coder.word, dtype)
        encoder = FastEncoder(tokenizer, pieces.encode, dtype)
    elif pattern is not None and much and find_spec("tiktoken") is not None:
        ranks = mergeable_ranks(tokenizer.json, leave_out=tokenizer.encoded_apart)
        if ranks is None:
            return None
        encode_one = encode_by_ranks(pattern, ranks)

        def encode(texts: Sequence[str]) -> list[bytes]:
            return [np.array(encode_one(text), dtype=dtype).tobytes() for text in texts]

        encoder = FastEncoder(tokenizer, encode, dtype, read_differently(_O200K_CLASSES, KNOWN))
    else:
        return None
    plain = [np.array(tokenizer.encode(text), dtype=dtype).tobytes() for text in _TRIALS]
    return encoder if encoder.encode(_TRIALS) == plain else None


def _split_pattern(tokenizer: Tokenizer) -> str | None:
    """The pattern that makes words of a text, if that and byte-level BPE are all there is."""
    if not tokenizer.coder.complete or tokenizer.parsed.model.type != "BPE":
        return None
    *first, last = list(steps(tokenizer.parsed.pre_tokenizer)) or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") is not False:
        return None
    own = last.get("use_regex", True) is True
    match first:
        case [] if own:
            return GPT2_SPLIT
        case [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}]:
            return str(pattern) if not own and pattern in (*SPLITS, O200K_SPLIT) else None
    return None
