"""tiktoken is used only where it gives the ids of the tokenizers library."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models

from rlhfkit.data import fast
from rlhfkit.data.coder import byte_alphabet
from rlhfkit.data.fast import O200K_SPLIT, fast_encoder
from rlhfkit.data.ranks import mergeable_ranks, read_differently
from rlhfkit.data.shards import token_dtype
from rlhfkit.data.tokenizer import Tokenizer
from tests.data.families import write_family

BYTES = sorted(byte_alphabet().values())


def tokenizer_json(merges: list[tuple[str, str]], *extra: str, **model: Any) -> bytes:
    """Byte-level BPE of these merges, ids in their order; `extra` tokens come last."""
    tokens = [*BYTES, *(a + b for a, b in merges), *extra]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": merges, **model}}).encode()


def test_ranks_are_the_ids_of_the_merged_bytes() -> None:
    ranks = mergeable_ranks(tokenizer_json([("a", "b"), ("Ġ", "ab"), ("Ã", "©")], "<|end|>"))
    assert ranks is not None
    assert len(ranks) == 259
    assert [ranks[b"ab"], ranks[b" ab"], ranks["é".encode()]] == [256, 257, 258]


ABC = [("a", "b"), ("b", "c")]


@pytest.mark.parametrize(
    ("what", "data"),
    [
        # abc comes of a + bc, but b + c never joins before a + b does
        ("a token that its merges do not reach", tokenizer_json([*ABC, ("a", "bc")])),
        ("ids in another order than merges", tokenizer_json([("a", "b"), ("c", "d")]).replace(b'"ab": 256', b'"ab": 258')),
        ("a merge of another alphabet", tokenizer_json([("a", "b"), ("日", "a")], "日")),
        ("a word's end marked", tokenizer_json([("a", "b")], end_of_word_suffix="</w>")),
        ("word parts marked", tokenizer_json([("a", "b")], continuing_subword_prefix="##")),
        ("a byte without a token", tokenizer_json([("a", "b")]).replace(b'"z":', b'"zz":')),
        ("a whole word that merges do not reach", tokenizer_json([*ABC, ("a", "bc")], ignore_merges=True)),
    ],
)  # fmt: skip
def test_what_tiktoken_would_merge_otherwise_is_refused(what: str, data: bytes) -> None:
    assert mergeable_ranks(data) is None, what


def test_a_refused_table_is_one_that_tiktoken_merges_otherwise() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    merges = [*ABC, ("a", "bc")]
    library = Library(models.BPE({t: i for i, t in enumerate([*BYTES, "ab", "bc", "abc"])}, merges))
    ranks = {bytes([byte]): BYTES.index(letter) for byte, letter in byte_alphabet().items()}
    ranks |= {b"ab": 256, b"bc": 257, b"abc": 258}
    theirs = tiktoken.Encoding("x", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    assert library.encode("abcx").ids != theirs.encode_ordinary("abcx")


def test_whole_words_count_only_with_ignore_merges() -> None:
    without, with_it = (
        mergeable_ranks(tokenizer_json([("a", "b")], "xyz", ignore_merges=w)) for w in (False, True)
    )
    assert without is not None
    assert b"xyz" not in without
    # "xyz" cannot be made of two tokens, so tiktoken, too, makes it only of the whole word.
    assert with_it is not None
    assert with_it[b"xyz"] == 257
    left_out = mergeable_ranks(tokenizer_json([("a", "b")], "xyz", ignore_merges=True), leave_out=["xyz"])
    assert left_out is not None
    assert b"xyz" not in left_out


@pytest.mark.parametrize("ignore_merges", [True, False])
@settings(deadline=None, max_examples=150)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6),
    words=st.lists(st.text("abc", max_size=12)),
)
def test_accepted_tables_give_the_library_s_ids(
    ignore_merges: bool, pairs: list[tuple[int, int]], words: list[str]
) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    tokens, merges = list("abc"), []
    for a, b in pairs:
        merge = tokens[a % len(tokens)], tokens[b % len(tokens)]
        if "".join(merge) not in tokens:
            merges.append(merge)
            tokens.append("".join(merge))
    data = tokenizer_json(merges, ignore_merges=ignore_merges)
    ranks = mergeable_ranks(data)
    if ranks is not None:
        vocab = json.loads(data)["model"]["vocab"]
        library = models.BPE(vocab, merges, ignore_merges=ignore_merges)
        theirs = tiktoken.Encoding("x", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
        for word in words:
            assert theirs.encode_ordinary(word) == [t.id for t in library.tokenize(word)]


def test_characters_of_another_unicode_are_found() -> None:
    pytest.importorskip("tiktoken")
    assert read_differently([r"\p{L}", r"\s"], "abc 1é") == ""


# -- GPT-4o's split, for which tiktoken is used ------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt4o(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3's tokenizer with GPT-4o's split."""
    directory = write_family("llama3", tmp_path_factory.mktemp("gpt4o"))
    path = directory / "tokenizer.json"
    value = json.loads(path.read_text())
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = O200K_SPLIT
    path.write_text(json.dumps(value))
    return directory


@cache
def engines(directory: Path) -> tuple[Tokenizer, fast.FastEncoder]:
    tokenizer = Tokenizer.from_dir(directory)
    encoder = fast_encoder(tokenizer, token_dtype(tokenizer.vocab_size))
    assert encoder is not None
    return tokenizer, encoder


CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    "aZsSǅʰ 1\n\t\r'/ſé½٣你\u0301\u00a0\u2028😀𝔘"
)


@settings(deadline=None, max_examples=200)
@given(
    text=st.text(CHARACTERS, max_size=40)
    | st.lists(st.sampled_from(["'s", "'LL", " ", "<|eot_id|>", "12", "é", "\n", "quick", "The"])).map(
        "".join
    )
)
def test_tiktoken_gives_the_library_s_ids(gpt4o: Path, text: str) -> None:
    pytest.importorskip("tiktoken")
    tokenizer, encoder = engines(gpt4o)
    ids = np.frombuffer(encoder.encode([text])[0], token_dtype(tokenizer.vocab_size))
    assert ids.tolist() == tokenizer.encode(text)


def test_without_tiktoken_or_for_little_text_the_library_encodes(
    gpt4o: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_dir(gpt4o)
    dtype = token_dtype(tokenizer.vocab_size)
    assert fast_encoder(tokenizer, dtype, much=False) is None
    monkeypatch.setattr(fast, "find_spec", lambda name: None)
    assert fast_encoder(tokenizer, dtype) is None


def test_an_engine_that_differs_on_a_trial_is_not_used(gpt4o: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tiktoken")
    tokenizer = Tokenizer.from_dir(gpt4o)
    dtype = token_dtype(tokenizer.vocab_size)
    assert fast_encoder(tokenizer, dtype) is not None
    right = fast.encode_by_ranks
    monkeypatch.setattr(fast, "encode_by_ranks", lambda _, ranks: right(r"\w+|\W", ranks))
    assert fast_encoder(tokenizer, dtype) is None


def test_the_trained_families_are_vouched_for(tmp_path: Path) -> None:
    for name in ("gpt2", "llama3", "qwen2", "neox"):
        tokenizer = Tokenizer.from_dir(write_family(name, tmp_path / name))
        assert mergeable_ranks(tokenizer.json) is not None, name
