"""train-tokenizer: text in, a tokenizer's directory out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rlhfkit import context
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.errors import CannotCreate, DataError, InputMissing, UsageError
from rlhfkit.files import sha256_file
from rlhfkit.stages.train_tokenizer import Config, run
from tests.data.families import TEXT


def settings(output: Path, vocab_size: int = 350, **others: object) -> Config:
    return Config(vocab_size=vocab_size, output=str(output), **others)  # type: ignore[arg-type]


def test_a_directory_that_says_what_made_it(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text(TEXT)
    summary = run([source], settings(tmp_path / "tok"))
    tokenizer = Tokenizer.from_dir(tmp_path / "tok")
    assert tokenizer.vocab_size == summary["vocab_size"] == 350
    assert tokenizer.digest == summary["tokenizer"]
    assert summary["bytes"] == len(TEXT.encode())
    description = json.loads((tmp_path / "tok" / "run.json").read_text())
    assert description["inputs"] == {str(source): sha256_file(source)}
    assert set(description["outputs"]) == {"tokenizer.json", "tokenizer_config.json"}
    assert description["outputs"]["tokenizer.json"] == tokenizer.digest
    with pytest.raises(CannotCreate):
        run([source], settings(tmp_path / "tok"))
    run([source], settings(tmp_path / "tok", vocab_size=300, force=True))
    assert Tokenizer.from_dir(tmp_path / "tok").vocab_size == 300


def test_the_form_of_the_input_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    digests = {
        run([tmp_path / "a.txt"], settings(tmp_path / "1"))["tokenizer"],
        run([tmp_path / "b.jsonl"], settings(tmp_path / "2"))["tokenizer"],
        run([{"text": TEXT}], settings(tmp_path / "3"))["tokenizer"],
    }
    assert len(digests) == 1


def test_a_long_document_in_parts_gives_the_same_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run([{"text": TEXT}], settings(tmp_path / "1"))["tokenizer"]
    monkeypatch.setattr("rlhfkit.data.texts.PART", 50)
    assert run([{"text": TEXT}], settings(tmp_path / "2"))["tokenizer"] == whole


def test_too_little_text_is_said(tmp_path: Path) -> None:
    notes: list[str] = []

    class Listener(context.Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    with context.surroundings(Listener(), context.Invocation()):
        assert run([{"text": "ab ab"}], settings(tmp_path / "1", vocab_size=5000))["vocab_size"] < 300
    assert "not 5000" in notes[0]


def test_what_cannot_be_trained_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("\n")
    for inputs, config, error in (
        ([source], settings(tmp_path / "x"), DataError),
        ([source], settings(tmp_path / "x", vocab_size=260), UsageError),
        ([{"text": 5}], settings(tmp_path / "x"), DataError),
    ):
        with pytest.raises(error):
            run(inputs, config)
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_dry_run_reads_everything_and_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text(TEXT)
    summary = run([source], settings(tmp_path / "x", dry_run=True))
    assert (summary["output"], summary["bytes"]) == (None, len(TEXT.encode()))
    source.write_bytes(b"a\xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 1"):
        run([source], settings(tmp_path / "x", dry_run=True))
    with pytest.raises(DataError, match="not UTF-8 at byte 1"):
        run([source], settings(tmp_path / "x"))
    with pytest.raises(InputMissing):
        run([source, tmp_path / "none"], settings(tmp_path / "x"))
    assert os.listdir(tmp_path) == ["a.txt"]
