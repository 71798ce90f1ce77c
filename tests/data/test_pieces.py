"""The fast encoder and the worker processes give the ids of the plain way, in order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfkit.data import encoding, pieces
from rlhfkit.data.encoding import DocumentEncoder, Job, encode_documents
from rlhfkit.data.fast import FastEncoder, fast_encoder
from rlhfkit.data.shards import token_dtype
from rlhfkit.data.split import GPT2_SPLIT, Split
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


def fast(tokenizer: Tokenizer) -> FastEncoder:
    encoder = fast_encoder(tokenizer, token_dtype(tokenizer.vocab_size))
    assert encoder is not None
    return encoder


CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    "aZ 1\n\t\r'é½٣你ー\u0301\u200d\u00a0\u2028\x85\x1c😀𝔘\0"
)
PARTS = st.sampled_from(
    ["'s", "'LL", " ", "<|end|>", "<|endoftext|>", "<|eot_id|>", "<think>", "12", "é", "e\u0301", "\n"]
)


@pytest.fixture(scope="module")
def families(own: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, FastEncoder]]:
    paths = {
        name: write_family(name, tmp_path_factory.mktemp(name))
        for name in ("gpt2", "llama3", "qwen2", "neox")
    }
    tokenizers = {name: Tokenizer.from_dir(path) for name, path in {"own": own, **paths}.items()}
    return {name: (tokenizer, fast(tokenizer)) for name, tokenizer in tokenizers.items()}


@pytest.mark.parametrize("family", ["own", "gpt2", "llama3", "qwen2", "neox"])
@settings(deadline=None, max_examples=150)
@given(
    texts=st.lists(st.text(CHARACTERS, max_size=30) | st.lists(PARTS, max_size=8).map("".join), max_size=5)
)
def test_fast_ids_are_the_library_s(
    families: dict[str, tuple[Tokenizer, FastEncoder]], family: str, texts: list[str]
) -> None:
    tokenizer, encoder = families[family]
    assert [ids(data, tokenizer) for data in encoder.encode(texts)] == [
        tokenizer.encode(text) for text in texts
    ]


def test_added_tokens_are_found_in_normalised_text(tmp_path: Path) -> None:
    path = write_family("gpt2", tmp_path) / "tokenizer.json"
    value = json.loads(path.read_text())
    value["normalizer"] = {"type": "Lowercase"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    value["added_tokens"].append({"id": len(value["model"]["vocab"]) + 1, "content": "The Fox", **flags})
    path.write_text(json.dumps(value))
    tokenizer = Tokenizer.from_dir(tmp_path)
    texts = ["the fox", "THE FOX jumps", "The Fox", "no Fox"]
    plain = [tokenizer.encode(text) for text in texts]
    assert plain[0] == plain[2] == [value["added_tokens"][-1]["id"]]
    assert [ids(data, tokenizer) for data in fast(tokenizer).encode(texts)] == plain


def test_words_of_every_length_are_told_apart(own: Path) -> None:
    tokenizer = Tokenizer.from_dir(own)
    # Words that differ in one byte, at the end, or by zero bytes, some of them beyond what a key holds.
    words = ["a" * n + end for n in range(1, 60) for end in ("", "b", "c")]
    texts = [*words, *words, "\0", "\0\0", "\0" * 8, "\0" * 15, "\0" * 16, "", "x" * 1000, "x" * 1000]
    encoder = fast(tokenizer)
    for _ in range(2):
        assert [ids(data, tokenizer) for data in encoder.encode(texts)] == [
            tokenizer.encode(t) for t in texts
        ]


def test_words_that_share_their_slots_are_told_apart(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_SLOT_BITS", 1)
    monkeypatch.setattr(pieces, "_AT_ONCE", 7)
    tokenizer = Tokenizer.from_dir(own)
    encoder = fast(tokenizer)
    for _ in range(3):
        assert ids(encoder.encode([TEXT])[0], tokenizer) == tokenizer.encode(TEXT)


def test_forgetting_words_changes_nothing(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST_WORDS", 3)
    monkeypatch.setattr(pieces, "_AT_ONCE", 2)
    tokenizer = Tokenizer.from_dir(own)
    encoder = pieces.PieceEncoder(Split(GPT2_SPLIT), tokenizer.coder.word, token_dtype(tokenizer.vocab_size))
    for _ in range(2):
        assert ids(encoder.encode([TEXT])[0], tokenizer) == tokenizer.encode(TEXT)
        assert len(encoder) <= 3 + 2


def test_an_encoder_that_differs_on_a_trial_is_not_used(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_dir(own)
    monkeypatch.setattr(tokenizer.coder, "word", lambda word: [0])
    assert fast_encoder(tokenizer, token_dtype(tokenizer.vocab_size)) is None


def test_only_byte_level_bpe_with_a_usual_split_is_fast(tmp_path: Path) -> None:
    known = set()
    for name in ("gpt2", "llama3", "qwen2", "neox", "deepseek", "llama2", "mistral", "gemma", "unigram"):
        tokenizer = Tokenizer.from_dir(write_family(name, tmp_path / name))
        if fast_encoder(tokenizer, token_dtype(tokenizer.vocab_size)) is not None:
            known.add(name)
    assert known == {"gpt2", "llama3", "qwen2", "neox"}


@pytest.mark.parametrize("family", ["own", "gpt2", "llama3", "qwen2", "llama2", "mistral", "gemma"])
def test_a_document_in_parts_has_the_ids_of_the_whole(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    tokenizer = (
        Tokenizer.from_dir(own)
        if family == "own"
        else Tokenizer.from_dir(write_family(family, tmp_path / family))
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
    tokenizer = Tokenizer.from_dir(own)
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
    with encoding._Pool(Tokenizer.from_dir(own), 2) as pool:
        pool._processes[1].kill()
        with pytest.raises(RlhfkitError, match=r"process died \(exit status -9\)"):
            list(pool.map([Job([Part("x", True, True)])] * 9))
    for process in pool._processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
