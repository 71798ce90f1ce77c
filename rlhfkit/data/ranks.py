"""tiktoken as another engine for the same ids: byte-level BPE whose merges can be said as ranks.

tiktoken merges the two neighbours whose joined bytes are the token of the lowest rank; the tokenizers library
merges the two neighbours that come first in a list of merges. Both do the same on every text if

- what a merge makes is in the vocabulary, and the list is in the order of the ids of what its merges make;
- every token comes out of the merges when its own text is encoded. For then two neighbours that make a token
  are always ones that the list merges: their text alone, encoded, comes to the same two neighbours (no token
  crossed its ends, so the same merges were made in it, in the same order), and goes on to the token. So the
  same merges are open to both, the lowest one is the same, and a token has only one that is ever used.

With `ignore_merges` (Llama 3) a token may instead be closed: the list has every way to make it of two tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from tokenizers import Regex, models, normalizers

from rlhfkit.data.coder import byte_alphabet

Ranks = dict[bytes, int]
Merge = tuple[str, str]


class _Model(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[Any]  # each "a b" or ["a", "b"]
    ignore_merges: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _File(msgspec.Struct):
    model: _Model


def mergeable_ranks(data: bytes, leave_out: Iterable[str] = ()) -> Ranks | None:
    """The bytes of each token and its id, out of a tokenizer.json; None if tiktoken would merge otherwise.

    The model must be BPE over GPT-2's byte alphabet. Tokens in `leave_out` never stand for text.
    """
    model = msgspec.json.decode(data, type=_File).model
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    merges: list[Merge] = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model.merges]
    made = [left + right for left, right in merges]
    letters = {letter: byte for byte, letter in byte_alphabet().items()}
    if not model.vocab.keys() >= {*letters, *made} or not set("".join(made)) <= letters.keys():
        return None
    order = [model.vocab[token] for token in made]
    if order != sorted(order):
        return None
    tokens = {*letters, *made}
    if model.ignore_merges:
        tokens |= {t for t in model.vocab.keys() - set(leave_out) if t and set(t) <= letters.keys()}
    open_tokens = sorted(tokens - _closed(tokens, set(merges)) if model.ignore_merges else tokens)
    if open_tokens:
        pure = models.BPE(vocab=model.vocab, merges=merges)
        if any([t.id for t in pure.tokenize(token)] != [model.vocab[token]] for token in open_tokens):
            return None
    return {bytes(map(letters.__getitem__, token)): model.vocab[token] for token in tokens}


def _closed(tokens: set[str], merges: set[Merge]) -> set[str]:
    """The tokens of which `merges` has every way to make them of two tokens."""
    return {
        token
        for token in tokens
        if all(
            (token[:i], token[i:]) in merges
            for i in range(1, len(token))
            if token[:i] in tokens and token[i:] in tokens
        )
    }


def encode_by_ranks(pattern: str, ranks: Ranks) -> Callable[[str], list[int]]:
    """tiktoken's encoding of text that `pattern` makes words of. Raises ImportError without tiktoken."""
    from tiktoken import Encoding

    encoding = Encoding("rlhfkit", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    encode: Callable[[str], list[int]] = encoding.encode_ordinary
    return encode


def read_differently(classes: Iterable[str], characters: str) -> str:
    """Those of `characters` that tiktoken and the tokenizers library do not both count to each of `classes`.

    They may know different versions of Unicode. A class is written as in a pattern, such as `\\p{L}`.
    """
    alone = {bytes([byte]): byte for byte in range(256)}
    differing = set[str]()
    for name in classes:
        ours = normalizers.Replace(Regex(f"[^{name}]"), "").normalize_str(characters)
        theirs = bytes(encode_by_ranks(name, alone)(characters)).decode()
        differing |= set(ours) ^ set(theirs)
    return "".join(sorted(differing))
