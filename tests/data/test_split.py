"""Words begin where the tokenizers library's own split lets them begin."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from rlhfkit.data.split import GPT2_SPLIT, KNOWN, SPLITS, Split

split = cache(Split)
CHARACTERS = st.sampled_from(KNOWN) | st.sampled_from(
    "aZsStT 1\n\t\r'\u017f.é½٣你ー\u0301\u200d\u00a0\u2028\u3000\x85\x1c😀"
)
WORDS = st.sampled_from(
    ["'s", "'LL", "'re", "'v", " ", "  ", "\r\n", "\n", "12", "é", ".", "ab", "\u3000", "'\u017f"]
)


def words_of_library(pattern: str, text: str) -> list[str]:
    """As the library splits; ByteLevel has its own pattern built in."""
    library = pre_tokenizers.Split(Regex(pattern), "isolated")
    return [word for word, _ in library.pre_tokenize_str(text)]


def words(pattern: str, texts: list[str]) -> list[str]:
    encoded = [text.encode() for text in texts]
    bounds = np.cumsum([0, *map(len, encoded)])
    data = b"".join(encoded)
    starts = split(pattern).words(data, bounds).tolist()
    return [data[a:b].decode() for a, b in pairwise(starts)]


@pytest.mark.parametrize("pattern", SPLITS, ids=["gpt2", "llama3", "qwen2"])
@settings(deadline=None, max_examples=400)
@given(
    texts=st.lists(
        st.text(CHARACTERS, max_size=20) | st.lists(WORDS, max_size=10).map("".join), min_size=1, max_size=4
    ).filter(any)
)
@example(texts=["x'", "s'", "'re"])
@example(texts=["x'r", "e", "'s's'S's"])
@example(texts=["", "a ", "", " b\n", "\n c", ""])
@example(texts=["a.", "\n\n", ".\n\r\n \n  x", ".\n", "\n."])
@example(texts=["1234567", "89 12345", " 1"])
@example(texts=["😀a", ".a", "..a", " .a", "\t.a", "\u3000.a", "\u3000a \u3000a", " '", "s", "a.'s"])
def test_words_begin_where_the_library_says(pattern: str, texts: list[str]) -> None:
    assert words(pattern, texts) == [word for text in texts for word in words_of_library(pattern, text)]


def test_byte_level_splits_by_the_published_pattern() -> None:
    text = "".join(KNOWN[::7]) + "I'll  go 'til\n\n 10 'S"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    places = [span for _, span in byte_level.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in places] == words_of_library(GPT2_SPLIT, text)


@pytest.mark.parametrize("pattern", SPLITS, ids=["gpt2", "llama3", "qwen2"])
@pytest.mark.parametrize("around", ["x{}", " {}1", "'{}a", ".{}.", "{} "])
def test_every_character_is_classed_as_the_library_does(pattern: str, around: str) -> None:
    text = "x".join(around.format(c) for c in KNOWN)
    assert words(pattern, [text]) == words_of_library(pattern, text)
