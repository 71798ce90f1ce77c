"""What is refused of a tokenizer.json before anything believes it.

It comes from strangers, and the tokenizers library would swallow a good deal: two tokens with one id, ids
far outside the vocabulary, normalisers that make a text a hundred thousand times longer, patterns that take
exponential time. Each is refused here with a plain sentence.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from rlhfkit.data.helper import helper_command
from rlhfkit.data.tokenizer_files import TokenizerJson, parse
from rlhfkit.errors import DataError

#: Text may grow this many times in normalisation (and shrink as it likes).
GROWTH = 16


def check(parsed: TokenizerJson, where: str) -> None:
    """Refuse what is broken or dangerous. Raises DataError."""
    _check_ids(parsed, where)
    _check_unknown(parsed, where)
    for section in (parsed.normalizer, parsed.decoder):
        growth = _growth(section)
        if growth > GROWTH:
            raise DataError(
                f"its replacements can make text {growth:g} times longer (at most {GROWTH})", where=where
            )
    for pattern in patterns(parsed):
        if exponential(pattern):
            raise DataError(f"pattern may take exponential time: {pattern[:80]!r}", where=where)


def _check_ids(parsed: TokenizerJson, where: str) -> None:
    vocab = parsed.model.ids()
    if isinstance(parsed.model.vocab, list) and len(vocab) != len(parsed.model.vocab):
        raise DataError("the vocabulary names a token twice", where=where)
    tokens = dict(vocab)
    for token in parsed.added_tokens:
        if not token.content:
            raise DataError(f"added token {token.id} is empty", where=where)
        if tokens.setdefault(token.content, token.id) != token.id:
            raise DataError(
                f"token {token.content!r} has two ids: {tokens[token.content]} and {token.id}", where=where
            )
    if not tokens:
        raise DataError("no tokens", where=where)
    owners: dict[int, str] = {}
    most = max(2 * len(tokens), len(tokens) + 4096)
    for name, token_id in tokens.items():
        if not 0 <= token_id < most:
            raise DataError(
                f"token {name!r} has id {token_id}, but there are {len(tokens)} tokens", where=where
            )
        if owners.setdefault(token_id, name) != name:
            raise DataError(
                f"tokens {owners[token_id]!r} and {name!r} have the same id {token_id}", where=where
            )


def _check_unknown(parsed: TokenizerJson, where: str) -> None:
    """Every text must have tokens: bytes as a way out, or an unknown token."""
    model = parsed.model
    if byte_level(parsed):
        return
    vocab = model.ids()
    if model.byte_fallback and all(f"<0x{i:02X}>" in vocab for i in range(256)):
        return
    if isinstance(model.vocab, list):
        known = model.unk_id is not None and 0 <= model.unk_id < len(model.vocab)
    else:
        known = model.unk_token is not None and model.unk_token in vocab
    if not known:
        raise DataError(
            "characters outside the vocabulary would vanish: it has neither an unknown token nor bytes",
            where=where,
            hint="use a byte-level tokenizer, such as one from rlhfkit train-tokenizer",
        )


def byte_level(parsed: TokenizerJson) -> bool:
    """Whether the vocabulary is spelt in GPT-2's byte alphabet."""
    return any(
        s.get("type") == "ByteLevel" for s in (*steps(parsed.pre_tokenizer), *steps(parsed.normalizer))
    )


def steps(section: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences unrolled."""
    if not isinstance(section, dict):
        return
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        if isinstance(section.get(key), list):
            for inner in section[key]:
                yield from steps(inner)
            return
    yield section


def _growth(section: Any) -> float:
    """Upper bound of how many times longer the replacements of a section make a text."""
    factor = 1.0
    for step in steps(section):
        if step.get("type") == "Replace":
            pattern, content = step.get("pattern"), step.get("content")
            found = pattern.get("String") if isinstance(pattern, dict) else None
            shortest = len(found) if isinstance(found, str) else 1
            factor *= max(1.0, len(content) / max(1, shortest)) if isinstance(content, str) else 1.0
        elif step.get("type") in ("Prepend", "Append"):
            factor *= max(1.0, len(str(step.get("prepend") or step.get("append") or "")))
    return factor


def patterns(parsed: TokenizerJson) -> Iterator[str]:
    """Every regular expression in the file."""
    for section in (parsed.normalizer, parsed.pre_tokenizer, parsed.decoder):
        for step in steps(section):
            pattern = step.get("pattern")
            if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
                yield pattern["Regex"]


_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\(|\)|[*+]|\{\d+(?:,\d*)?\}|.", re.DOTALL)


def _many(bounds: str) -> bool:
    """Whether `{m,n}` allows more than a few repetitions."""
    most = bounds[1:-1].split(",")[-1]
    return not most or int(most) > 8


def exponential(pattern: str) -> bool:
    """Whether an unlimited repetition contains another one, which can take exponential time.

    No tokenizer in use needs it: repeated groups there have single characters or fixed words inside.
    """
    open_groups: list[bool] = []  # whether something is repeated inside each open group
    closed: bool | None = None  # the same for the group that has just been closed
    for atom in _ATOM.findall(pattern):
        if atom == "(":
            open_groups.append(False)
        elif atom == ")" and open_groups:
            closed = open_groups.pop()
            if closed and open_groups:
                open_groups[-1] = True
            continue
        elif atom[0] in "*+" or (len(atom) > 1 and atom[0] == "{" and _many(atom)):
            if closed:
                return True
            open_groups = [True] * len(open_groups)
        closed = None
    return False


# -- a trial of unknown patterns, where it can do no harm ---------------------------------------------------

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: How published families (GPT-4 and Llama 3, Qwen 2) make words of a text, in one pattern.
WORD_SPLITS = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
)
#: Patterns known to be safe; the others are GPT-4o's and DeepSeek's for digits and spaces.
_KNOWN_SPLITS = {*WORD_SPLITS, r"\p{N}{1,3}", r"\p{N}", r" {2,}"}
#: Seconds that the trial may take.
_TRIAL_SECONDS = 2


def try_patterns(data: bytes, parsed: TokenizerJson, where: str) -> None:
    """Encode what would make a bad pattern slow, in a process of its own. Raises DataError if it fails.

    A pattern that gives up makes the library panic, with a long account of it on standard error.
    """
    if all(pattern in _KNOWN_SPLITS for pattern in patterns(parsed)):
        return
    trial = subprocess.run(
        helper_command("rlhfkit.data.tokenizer_checks"), input=data, capture_output=True, check=False
    )
    if trial.returncode != 0:
        raise DataError("a pattern takes too long or too much on a trial text", where=where)


def serve() -> None:
    """The trial: exit status 0 if the tokenizer on standard input encodes every trial text in time."""
    from tokenizers import Tokenizer

    data = sys.stdin.buffer.read()
    tokenizer = Tokenizer.from_buffer(data)
    literals = sorted(set("".join(patterns(parse(data, "")))))[:100]
    signal.alarm(_TRIAL_SECONDS)
    for character in {*literals, "a", " ", "1", "\n", "!"}:
        # The last one ends in what a search for a required letter would look for first.
        for end in ("", "\x00", "\n", "a", "\x00" + "".join(literals)):
            tokenizer.encode(character * 100 + end)
