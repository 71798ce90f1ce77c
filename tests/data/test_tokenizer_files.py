"""Broken and hostile tokenizers: each is refused in one sentence, soon, with nothing on standard error."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.data.tokenizer_checks import exponential
from rlhfkit.errors import DataError, InputMissing, RlhfkitError
from tests.data.families import LLAMA3_SPLIT, QWEN2_SPLIT, write_family

Change = Callable[[dict[str, Any]], None]


def refuse(directory: Path) -> RlhfkitError:
    start = time.monotonic()
    with pytest.raises(RlhfkitError) as caught:
        Tokenizer.from_dir(directory)
    assert time.monotonic() - start < 20  # 5 s on a machine that is not busy
    assert "\n" not in str(caught.value)
    return caught.value


def changed(tmp_path: Path, change: Change, family: str = "llama3") -> Path:
    directory = write_family(family, tmp_path / "tokenizer")
    document = json.loads((directory / "tokenizer.json").read_text())
    change(document)
    (directory / "tokenizer.json").write_text(json.dumps(document))
    return directory


def test_missing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert refuse(path).exit_code == 66
    (tmp_path / "tokenizer.model").touch()
    assert "AutoTokenizer" in str(refuse(tmp_path).hint)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b'{"model": {"vocab": {"a": 0', "not a tokenizer: Input data was truncated"),
        (b'{"model": "\xff"}', "not UTF-8 at byte 11"),
        (b'{"normalizer": ' + b"[" * 200_000, "nested too deeply"),
        (b"{}", "missing required field `model`"),
        (b'{"model": {"vocab": {"a": "b"}}}', "Expected `int`"),
        (b'{"model": {"type": "BPE", "vocab": {}}}', "no tokens"),
        (b"PK\x03\x04", "not a tokenizer"),
    ],
)
def test_not_a_tokenizer(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    error = refuse(tmp_path)
    assert error.exit_code == 65
    assert message in str(error)


def _set(*path: str | int, value: object) -> Change:
    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def _pattern(regex: str) -> Change:
    return _set("pre_tokenizer", "pretokenizers", 0, "pattern", value={"Regex": regex})


def _replacements(n: int) -> Change:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return _set("normalizer", value={"type": "Sequence", "normalizers": [step] * n})


def _no_bytes(document: dict[str, Any]) -> None:
    document["pre_tokenizer"] = {"type": "Whitespace"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("model", "merges", value=[["zz", "yy"]]), "out of vocabulary"),
        (_set("model", "type", value="Magic"), "tokenizer:"),
        (_set("pre_tokenizer", "type", value="Magic"), "tokenizer:"),
        (_pattern("(["), "tokenizer:"),
        (_set("model", "vocab", "The", value=300), "have the same id 300"),
        (_set("model", "vocab", "The", value=10**9), "has id 1000000000, but there are"),
        (_set("model", "vocab", "The", value=-1), "has id -1"),
        (_set("added_tokens", 0, "id", value=10**9), "has id 1000000000"),
        (_set("added_tokens", 0, "id", value=2**70), "has id 1180591620717411303424"),
        (_set("added_tokens", 0, "content", value=""), "is empty"),
        (_set("added_tokens", 1, "content", value="The"), "has two ids"),
        (_no_bytes, "would vanish"),
        (_pattern("(a+)+$"), "exponential time"),
        (_pattern("(x|xx)+y$"), "on a trial text"),
        (_pattern("a*a*a*a*a*a*a*a*a*b"), "on a trial text"),
        (_replacements(5), "100000 times longer"),
        (
            _set("decoder", value={"type": "Replace", "pattern": {"Regex": "."}, "content": "b" * 99}),
            "99 times",
        ),
    ],
)
def test_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Change, message: str) -> None:
    error = refuse(changed(tmp_path, change))
    assert error.exit_code == 65
    assert message in str(error)
    assert capfd.readouterr() == ("", "")


def test_words_only_need_an_unknown_token(tmp_path: Path) -> None:
    word_level = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": word_level, "added_tokens": []}))
    assert Tokenizer.from_dir(tmp_path).encode("a") == [0]
    path.write_text(json.dumps({"model": {**word_level, "unk_token": "[MISSING]"}}))
    assert "would vanish" in str(refuse(tmp_path))


def test_a_byte_that_has_no_token_is_an_error_not_a_hole(tmp_path: Path) -> None:
    def drop(document: dict[str, Any]) -> None:
        vocab = document["model"]["vocab"]
        vocab["\u0100\u0100"] = vocab.pop("\u0100")  # the byte 0

    tokenizer = Tokenizer.from_dir(changed(tmp_path, drop, "gpt2"))
    assert tokenizer.decode(tokenizer.encode("The é")) == "The é"
    for encode in (tokenizer.encode, tokenizer.encode_continuation, lambda t: tokenizer.encode_batch([t])):
        with pytest.raises(DataError, match="no token for byte 0x00"):
            encode("a\0b")


def test_not_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    assert isinstance(refuse(tmp_path), InputMissing)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    assert isinstance(refuse(tmp_path), InputMissing)
    (tmp_path / "tokenizer.json").rmdir()
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    assert isinstance(refuse(tmp_path), InputMissing)


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{", '{"chat_template": 5}', '{"chat_template": "{% if %}"}', '{"eos_token": ["x"]}'],
)
def test_broken_configuration(tmp_path: Path, config: str) -> None:
    directory = write_family("gpt2", tmp_path / "x")
    (directory / "tokenizer_config.json").write_text(config)

    def use() -> None:
        tokenizer = Tokenizer.from_dir(directory)
        assert tokenizer.eos_id
        tokenizer.encode_chat([{"role": "user", "content": "x"}])

    with pytest.raises(DataError):
        use()


def test_odd_but_harmless_configuration(tmp_path: Path) -> None:
    directory = write_family("gpt2", tmp_path / "x")
    odd = {"additional_special_tokens": [{"content": []}, 5], "added_tokens_decoder": [], "eos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(odd))
    assert Tokenizer.from_dir(directory).encode("a")


def test_patterns_of_published_tokenizers_are_let_through() -> None:
    o200k = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bloom = r" ?[^(\s|[.,!?…。，、।۔،])]+"
    deepseek = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    for pattern in (
        LLAMA3_SPLIT,
        QWEN2_SPLIT,
        o200k,
        bloom,
        deepseek,
        r"\d(?=(?:\d{3})+\b)",
        r"[一-龥぀-ゟ]+",
    ):
        assert not exponential(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a*)*", "((a+)b?)+", "(?:a{2,})+", "(a|b+)*", "([a-z]+)*x", "(a+){10}", r"(\d+\s*)+"],
)
def test_nested_repetition_is_found(pattern: str) -> None:
    assert exponential(pattern)
