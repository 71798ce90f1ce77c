"""The tokenizer's files in a model directory: read whole, checked before anything believes them.

A tokenizer.json comes from strangers. It is parsed here first, so that what the tokenizers library would
swallow (two tokens with one id, ids far outside the vocabulary, normalisers that make text a hundred
thousand times longer, patterns that take exponential time) is refused with a plain sentence.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rlhfkit.errors import DataError, InputMissing

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
#: Copied unchanged when a tokenizer is saved; what other programs may look for.
COMPANIONS = (
    CONFIG,
    TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
#: Read for ids that end a text, never written here.
_NEIGHBOURS = ("generation_config.json", "config.json")
#: Largest file read, in bytes (the largest tokenizer.json in use is about 35 MB).
LARGEST = 256 * 2**20
#: Text may grow this many times in normalisation (and shrink as it likes).
GROWTH = 16


class AddedToken(msgspec.Struct, frozen=True):
    """An entry of `added_tokens`."""

    id: int
    content: str
    special: bool = False


class ModelSection(msgspec.Struct, frozen=True):
    """What is checked of the `model` section; the merges are left to the tokenizers library."""

    vocab: dict[str, int] | list[tuple[str, float]]
    type: str | None = None
    unk_token: str | None = None
    unk_id: int | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False

    def ids(self) -> Mapping[str, int]:
        """Token -> id. Raises ValueError if a list names a token twice."""
        if isinstance(self.vocab, dict):
            return self.vocab
        return {token: i for i, (token, _) in enumerate(self.vocab)}


class TokenizerJson(msgspec.Struct, frozen=True):
    """A tokenizer.json as far as it is checked."""

    model: ModelSection
    added_tokens: list[AddedToken] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None


@dataclass(frozen=True)
class TokenizerFiles:
    """The bytes of the files by name, and the parsed tokenizer.json."""

    path: Path
    files: Mapping[str, bytes]
    parsed: TokenizerJson

    @classmethod
    def of(cls, files: Mapping[str, bytes], path: Path = Path()) -> TokenizerFiles:
        """Check the tokenizer.json among `files`. Raises DataError."""
        where = str(path / TOKENIZER)
        parsed = _parse(files[TOKENIZER], where)
        check(parsed, where)
        return cls(path, files, parsed)

    def where(self, name: str) -> str:
        """A file's path for messages."""
        return str(self.path / name)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object among the files; empty if the file is not there."""
        if name not in self.files:
            return {}
        try:
            value = msgspec.json.decode(self.files[name])
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise DataError(f"not JSON: {e}", where=self.where(name)) from None
        if not isinstance(value, dict):
            raise DataError("not a JSON object", where=self.where(name))
        return value


def read_files(path: str | os.PathLike[str]) -> TokenizerFiles:
    """Read and check the tokenizer in a directory.

    Raises InputMissing (66) when it is not there and DataError (65) when it is broken or dangerous.
    """
    directory = Path(path)
    if not directory.is_dir():
        what = "not a directory" if directory.exists() else "no such directory"
        raise InputMissing(what, where=str(path), hint="give a model or tokenizer directory")
    data = read_regular(directory / TOKENIZER, LARGEST)
    if data is None:
        slow = [n for n in ("tokenizer.model", "vocab.json", "vocab.txt") if (directory / n).exists()]
        hint = "train one with rlhfkit train-tokenizer"
        if slow:
            hint = (
                f"only {slow[0]} is there: load it with transformers.AutoTokenizer and save_pretrained() it"
            )
        raise InputMissing("no tokenizer.json", where=str(path), hint=hint)
    files = {TOKENIZER: data}
    for name in (*COMPANIONS, *_NEIGHBOURS):
        companion = read_regular(directory / name, LARGEST)
        if companion is not None:
            files[name] = companion
    return TokenizerFiles.of(files, directory)


def read_regular(path: Path, limit: int) -> bytes | None:
    """The bytes of a regular file, None when there is none. Never waits for a FIFO or a device."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise InputMissing(e.strerror or "cannot be opened", where=str(path)) from None
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise InputMissing("not a regular file", where=str(path))
        if about.st_size > limit:
            raise DataError(f"{about.st_size} bytes (at most {limit})", where=str(path))
        return file.read()


def _parse(data: bytes, where: str) -> TokenizerJson:
    if not data:
        raise DataError("empty file", where=where)
    try:
        data.decode()
        return msgspec.json.decode(data, type=TokenizerJson)
    except UnicodeDecodeError as e:
        raise DataError(f"not UTF-8 at byte {e.start}", where=where) from None
    except RecursionError:
        raise DataError("nested too deeply", where=where) from None
    except msgspec.DecodeError as e:
        raise DataError(f"not a tokenizer: {e}", where=where) from None


# -- checks -----------------------------------------------------------------------------------------------


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
    for section in (parsed.normalizer, parsed.pre_tokenizer, parsed.decoder):
        for pattern in _patterns(section):
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


def _patterns(section: Any) -> Iterator[str]:
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
