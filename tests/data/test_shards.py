"""Token shards: what is written is read back, and whatever is wrong with one is named."""

from __future__ import annotations

import json
import os
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfkit.data.shards import Shard, ShardWriter, open_shard, token_dtype, write_shard, write_shards
from rlhfkit.errors import CannotCreate, DataError, InputMissing

DIGEST = "d" * 64
DOCUMENTS = [[5, 6, 1], [1], list(range(100)), [7, 1]]


def shard(tmp_path: Path, documents: list[list[int]] = DOCUMENTS, vocab_size: int = 300) -> Path:
    path = tmp_path / "x.safetensors"
    write_shard(path, documents, tokenizer_digest=DIGEST, vocab_size=vocab_size, force=True)
    return path


def documents(shard: Shard) -> list[list[int]]:
    return [shard.document(i).tolist() for i in range(len(shard.doc_offsets) - 1)]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(300, np.uint16), (65_536, np.uint16), (65_537, np.uint32)]
)
def test_round_trip_in_the_narrowest_type(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    top = [[vocab_size - 1], *DOCUMENTS]
    got = open_shard(shard(tmp_path, top, vocab_size))
    assert documents(got) == top
    assert got.tokens.dtype == dtype
    assert (got.tokenizer_digest, got.vocab_size) == (DIGEST, vocab_size)
    assert isinstance(got.tokens, np.memmap)
    assert not got.tokens.flags.writeable


@pytest.mark.parametrize("framework", ["numpy", "pt"])
def test_the_safetensors_library_reads_it(tmp_path: Path, framework: str) -> None:
    from safetensors import safe_open

    with safe_open(shard(tmp_path), framework) as file:
        assert file.get_tensor("tokens").tolist() == list(chain(*DOCUMENTS))
        assert file.get_tensor("doc_offsets").tolist() == [0, 3, 4, 104, 106]
        assert file.metadata()["num_docs"] == "4"


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=9), max_size=4), max_size=4),
    limit=st.integers(1, 30),
)
def test_shards_end_with_the_document_that_reaches_the_limit(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[list[int]]], limit: int
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    dtype = token_dtype(300)
    encoded = [
        (np.array(list(chain(*docs)), dtype=dtype).tobytes(), np.cumsum([len(d) for d in docs]).tolist())
        for docs in pieces
    ]
    number = write_shards(directory, encoded, limit, tokenizer_digest=DIGEST, vocab_size=300)
    shards = [open_shard(p) for p in sorted(directory.iterdir())]
    assert len(shards) == number
    assert [d for s in shards for d in documents(s)] == list(chain(*pieces))
    for one in shards[:-1]:
        assert len(one.tokens) >= limit > len(one.tokens) - len(one.document(-2))


def test_a_document_may_come_in_pieces(tmp_path: Path) -> None:
    dtype = token_dtype(300)
    with ShardWriter(tmp_path, tokenizer_digest=DIGEST, vocab_size=300) as writer:
        for tokens, ends in (([1, 2], []), ([3], []), ([4, 5, 6], [1]), ([7], [1])):
            writer.add(np.array(tokens, dtype=dtype).tobytes(), ends)
        writer.finish(tmp_path / "x.safetensors")
    assert documents(open_shard(tmp_path / "x.safetensors")) == [[1, 2, 3, 4], [5, 6, 7]]
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = shard(tmp_path)
    with pytest.raises(CannotCreate):
        write_shard(path, [[1]], tokenizer_digest=DIGEST, vocab_size=2)
    assert documents(open_shard(path)) == DOCUMENTS


# -- what is wrong is named ---------------------------------------------------------------------------------


def header_of(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rebuilt(header: dict, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def edited(path: Path, *keys: str, value: object) -> None:
    header, body = header_of(path.read_bytes())
    inner = header
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_bytes(rebuilt(header, body))


def refuse(path: Path, message: str, *, check: bool = True) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_shard(path, check=check)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (b"\0" * 8, "bad header"),
        (struct.pack("<Q", 2**40) + b"{}", "no safetensors header"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "no safetensors header"),
        (struct.pack("<Q", 2) + b"{}", "it holds nothing"),
        (struct.pack("<Q", 2) + b"[]", "bad header"),
        (b"\x93NUMPY" + b"\0" * 100, "not a token shard"),
        (
            rebuilt({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
            "it holds weight",
        ),
    ],
)
def test_not_a_shard(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    refuse(path, message)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("__metadata__", "version"), "2", r"format version 2 \(this rlhfkit reads 1\)"),
        (("__metadata__", "version"), None, "format version None"),
        (("__metadata__", "num_tokens"), "107", "num_tokens is 107 in the metadata, 106 in the data"),
        (("__metadata__", "num_docs"), "5", "num_docs is 5"),
        (("__metadata__", "vocab_size"), "70000", "16 bits are too narrow for a vocabulary of 70000"),
        (("__metadata__", "vocab_size"), "-1", "vocab_size is '-1'"),
        (("tokens", "dtype"), "F16", "tokens has the type F16"),
        (("tokens", "dtype"), "U32", "does not fit bytes"),
        (("tokens", "shape"), [53, 2], "does not fit bytes"),
        (("tokens", "shape"), [-106], "does not fit bytes"),
        (("tokens", "data_offsets"), [40, 251], "does not fit bytes"),
        (("tokens", "data_offsets"), [42, 254], "does not fit bytes"),
        (("doc_offsets", "dtype"), "U32", "doc_offsets has the type U32"),
        (("tokens",), None, "it holds doc_offsets"),
    ],
)
def test_header_that_lies(tmp_path: Path, keys: tuple[str, ...], value: object, message: str) -> None:
    path = shard(tmp_path)
    edited(path, *keys, value=value)
    refuse(path, message, check=False)


def test_cut_short_or_too_long(tmp_path: Path) -> None:
    data = shard(tmp_path).read_bytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(data[:-1])
    refuse(path, f"truncated: {len(data) - 1} bytes, {len(data)} needed", check=False)
    path.write_bytes(data + b"\0")
    refuse(path, "too long", check=False)


def test_the_first_id_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path, [[1, 2, 3], [4, 300, 5, 301]], vocab_size=400)
    edited(path, "__metadata__", "vocab_size", value="300")
    refuse(path, "token 4 has id 300, but the vocabulary has 300")
    assert len(open_shard(path, check=False).tokens) == 7


def test_no_tokens(tmp_path: Path) -> None:
    refuse(shard(tmp_path, []), "holds no tokens")


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 3, 4, 104, 106], "starts at 1, not at 0"),
        ([0, 3, 2, 104, 106], "decreases at document 2"),
        ([0, 3, 4, 104, 105], "ends at 105, not at 106"),
        ([0, 3, 4, 104, 10**12], "ends at 1000000000000"),
    ],
)
def test_document_bounds(tmp_path: Path, offsets: list[int], message: str) -> None:
    path = shard(tmp_path)
    header, body = header_of(path.read_bytes())
    path.write_bytes(rebuilt(header, np.array(offsets, dtype="<i8").tobytes() + body[40:]))
    refuse(path, message)


def test_one_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path)
    data = bytearray(path.read_bytes())
    data[-4] ^= 2
    path.write_bytes(data)
    refuse(path, "SHA-256 differs")


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "none", tmp_path / "fifo"):
        with pytest.raises(InputMissing):
            open_shard(path)


def test_checking_reads_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhfkit.data.shards._WINDOW", 16)
    path = shard(tmp_path)
    assert documents(open_shard(path)) == DOCUMENTS
    edited(path, "__metadata__", "vocab_size", value="50")
    refuse(path, "token 54 has id 50,")
