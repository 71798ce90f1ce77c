"""The tokenizer's files in a model directory: read whole, and what they declare."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
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
#: The variables that transformers hands to chat templates.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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
        """Parse the tokenizer.json among `files`. Raises DataError."""
        where = str(path / TOKENIZER)
        parsed = parse(files[TOKENIZER], where)
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

    def named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, ... as the configuration names them."""
        config = self.json(CONFIG)
        if "added_tokens_decoder" not in config:  # the older place
            config = {**config, **self.json("special_tokens_map.json")}
        named = {}
        for key in NAMED_TOKENS:
            value = config.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                named[key] = value
        return named

    def special_tokens(self) -> set[str]:
        """Tokens that the configuration calls special, whatever tokenizer.json says of them."""
        config = self.json(CONFIG)
        listed: list[object] = [*self.named_tokens().values()]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            tokens = config.get(key)
            listed += (
                tokens if isinstance(tokens, list) else tokens.values() if isinstance(tokens, dict) else ()
            )
        decoder = config.get("added_tokens_decoder")
        added = decoder.values() if isinstance(decoder, dict) else ()
        listed += [token for token in added if isinstance(token, dict) and token.get("special") is True]
        names = (token.get("content") if isinstance(token, dict) else token for token in listed)
        return {name for name in names if isinstance(name, str)}

    def template_text(self) -> str | None:
        """The chat template: chat_template.jinja, else the configuration's (its "default" if several)."""
        if TEMPLATE in self.files:
            try:
                return self.files[TEMPLATE].decode()
            except UnicodeDecodeError as e:
                raise DataError(f"not UTF-8 at byte {e.start}", where=self.where(TEMPLATE)) from None
        value = self.json(CONFIG).get("chat_template")
        if isinstance(value, list):
            named = (t for t in value if isinstance(t, dict) and t.get("name") == "default")
            value = next((t.get("template") for t in named), None)
        if value is not None and not isinstance(value, str):
            raise DataError("chat_template is not a string", where=self.where(CONFIG))
        return value


def read_files(path: str | os.PathLike[str]) -> TokenizerFiles:
    """Read the tokenizer in a directory.

    Raises InputMissing (66) when it is not there and DataError (65) when it is broken.
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
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        os.close(fd)
        raise InputMissing("not a regular file", where=str(path))
    with os.fdopen(fd, "rb") as file:
        if about.st_size > limit:
            raise DataError(f"{about.st_size} bytes (at most {limit})", where=str(path))
        return file.read()


def parse(data: bytes, where: str) -> TokenizerJson:
    """Parse the bytes of a tokenizer.json. Raises DataError."""
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
