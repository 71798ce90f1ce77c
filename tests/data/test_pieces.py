"""The fast encoder and the worker processes give the ids of the plain way, in order."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfkit.data import encoding, pieces
from rlhfkit.data.encoding import DocumentEncoder, Job, encode_documents
from rlhfkit.data.pieces import piece_encoder
from rlhfkit.data.shards import token_dtype
from rlhfkit.data.texts import Part, _parts
from rlhfkit.data.tokenizer import Tokenizer, train_tokenizer
from rlhfkit.errors import DataError, RlhfkitError
from tests.data.families import TEXT, write_family


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("own")
    train_tokenizer([TEXT], 400).save(directory)
    return directory


def ids(data: bytes, tokenizer: Tokenizer) -> list[int]:
    return np.frombuffer(data, dtype=token_dtype(tokenizer.vocab_size)).tolist()


CHARACTERS = st.characters() | st.sampled_from("aZ 1\n\t\r'é½٣你ー\u0301\u200d\u00a0\u2028\x85\x1c😀𝔘")


@settings(deadline=None, max_examples=200)
@given(
    text=st.text(CHARACTERS, max_size=40)
    | st.lists(st.sampled_from(["'s", "'LL", " ", "<|end|>", "12", "é", "\n"])).map("".join)
)
def test_fast_ids_are_the_library_s(own: Path, text: str) -> None:
    tokenizer = _tokenizer(own)
    fast = _fast(own)
    assert ids(fast.encode(text), tokenizer) == tokenizer.encode(text)


_loaded: dict[Path, Tokenizer] = {}
_encoders: dict[Path, pieces.PieceEncoder] = {}


def _tokenizer(path: Path) -> Tokenizer:
    return _loaded.setdefault(path, Tokenizer.from_dir(path))


def _fast(path: Path) -> pieces.PieceEncoder:
    if path not in _encoders:
        encoder = piece_encoder(_tokenizer(path))
        assert encoder is not None
        _encoders[path] = encoder
    return _encoders[path]


@pytest.mark.parametrize("around", ["{}", " {}1"])
def test_every_character_is_classed_as_the_library_does(own: Path, around: str) -> None:
    tokenizer = _tokenizer(own)
    text = "x".join(around.format(c) for c in pieces._KNOWN)
    assert ids(_fast(own).encode(text), tokenizer) == tokenizer.encode(text)


def test_forgetting_words_changes_nothing(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST_WORDS", 3)
    tokenizer = _tokenizer(own)
    fast = piece_encoder(tokenizer)
    assert fast is not None
    for _ in range(2):
        assert ids(fast.encode(TEXT), tokenizer) == tokenizer.encode(TEXT)
        assert len(fast) <= 3


def test_only_tokenizers_that_split_like_gpt2_are_fast(tmp_path: Path) -> None:
    fast = {
        name
        for name in ("gpt2", "llama3", "qwen2", "neox", "deepseek", "llama2", "mistral", "gemma", "unigram")
        if piece_encoder(Tokenizer.from_dir(write_family(name, tmp_path / name))) is not None
    }
    assert fast == {"gpt2"}


@pytest.mark.parametrize("family", ["own", "gpt2", "llama3", "qwen2", "llama2", "mistral", "gemma"])
def test_a_document_in_parts_has_the_ids_of_the_whole(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    tokenizer = (
        _tokenizer(own) if family == "own" else Tokenizer.from_dir(write_family(family, tmp_path / family))
    )
    text = TEXT * 3
    whole = [*tokenizer.prefix_ids, *tokenizer.encode(text), tokenizer.eos_id]
    monkeypatch.setattr("rlhfkit.data.texts.PART", 64)
    parts = list(_parts([text]))
    assert len(parts) > 5
    encoded = DocumentEncoder(tokenizer).encode(Job(parts))
    assert ids(encoded.tokens, tokenizer) == whole
    assert encoded.ends == [len(whole)]
    assert encoded.num_bytes == len(text.encode())


def test_workers_keep_the_order(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "JOB", 300)
    tokenizer = _tokenizer(own)
    parts = [Part(f"document {i} " * (i % 7 + 1), True, True) for i in range(200)]
    got = {}
    for workers in (1, 3):
        jobs = list(encode_documents(tokenizer, parts, workers=workers))
        assert len(jobs) > 20
        tokens = ids(b"".join(job.tokens for job in jobs), tokenizer)
        got[workers] = tokens, sum(len(job.ends) for job in jobs)
    assert got[1] == got[3]
    assert got[1][1] == 200
    assert got[1][0] == [i for part in parts for i in [*tokenizer.encode(part.text), tokenizer.eos_id]]


def test_a_tokenizer_that_changes_under_way_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "JOB", 10)
    tokenizer = Tokenizer.from_dir(write_family("gpt2", tmp_path / "x"))
    write_family("neox", tmp_path / "x")
    with pytest.raises(DataError, match="changed while it was being used"):
        list(encode_documents(tokenizer, [Part("x" * 20, True, True)] * 9, workers=2))


def test_a_worker_that_dies_ends_the_run(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "JOB", 10)
    with encoding._Pool(_tokenizer(own), 2) as pool:
        pool._processes[1].kill()
        with pytest.raises(RlhfkitError, match=r"process died \(exit status -9\)"):
            list(pool.map([Job([Part("x", True, True)])] * 9))
    for process in pool._processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
