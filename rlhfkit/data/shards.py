"""Token shards: tokenised documents in a safetensors file, read by memory map.

Layout: `doc_offsets` int64 (documents + 1; document i is tokens[doc_offsets[i] : doc_offsets[i + 1]], its
end token included), then `tokens`, uint16 or, for a vocabulary of more than 65,536, uint32. The metadata
hold the format's version, the tokenizer's digest, the vocabulary's size, the counts and the SHA-256 of the
data, so that one changed bit is noticed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from rlhfkit.errors import DataError, InputMissing, InputOutputError
from rlhfkit.files import atomic_file

VERSION = "1"
#: Header of at most this many bytes is read; ours is about 500.
_LONGEST_HEADER = 2**20
#: Bytes looked at in one go while checking or copying.
_WINDOW = 2**24
_DTYPES: dict[str, np.dtype[Any]] = {"U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "I64": np.dtype("<i8")}


@dataclass(frozen=True)
class Shard:
    """An open shard; the arrays are memory maps."""

    path: Path
    tokens: npt.NDArray[np.uint16 | np.uint32]  # (tokens,)
    doc_offsets: npt.NDArray[np.int64]  # (documents + 1,)
    tokenizer_digest: str
    vocab_size: int

    def document(self, index: int) -> npt.NDArray[np.uint16 | np.uint32]:
        """Tokens of one document, its end token included."""
        return self.tokens[self.doc_offsets[index] : self.doc_offsets[index + 1]]


def token_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The narrowest type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


# -- writing ----------------------------------------------------------------------------------------------


class ShardWriter:
    """Collects documents of one shard in unnamed files in a directory; memory does not grow."""

    def __init__(self, directory: Path, *, tokenizer_digest: str, vocab_size: int) -> None:
        self.num_tokens = 0
        self.num_docs = 0
        self._directory = directory
        self._metadata = {"tokenizer_digest": tokenizer_digest, "vocab_size": str(vocab_size)}
        self._dtype = token_dtype(vocab_size)
        with _disk_errors(directory):
            self._tokens: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (see close)
            self._offsets: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self._offsets.write(struct.pack("<q", 0))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, tokens: bytes, ends: Sequence[int]) -> None:
        """Append tokens (bytes of the shard's type) and after how many of them documents end."""
        with _disk_errors(self._directory):
            self._tokens.write(tokens)
            self._offsets.write((self.num_tokens + np.array(ends, dtype="<i8")).tobytes())
        self.num_tokens += len(tokens) // self._dtype.itemsize
        self.num_docs += len(ends)

    def finish(self, path: Path, *, force: bool = False) -> None:
        """Write the shard under its name, whole or not at all."""
        parts = (self._offsets, self._tokens)
        digest = hashlib.sha256()
        with _disk_errors(self._directory):
            for part in parts:
                part.flush()
                part.seek(0)
                while block := part.read(_WINDOW):
                    digest.update(block)
        with atomic_file(path, force=force) as out:
            out.write(self._header(digest.hexdigest()))
            for part in parts:
                part.seek(0)
                shutil.copyfileobj(part, out, _WINDOW)
        self.close()

    def close(self) -> None:
        """Drop what was collected."""
        # What is still buffered may not fit on the disk; nobody wants it any more.
        with suppress(OSError):
            self._tokens.close()
        with suppress(OSError):
            self._offsets.close()

    def _header(self, digest: str) -> bytes:
        ends = 8 * (self.num_docs + 1)
        size = self._dtype.itemsize * self.num_tokens
        header = {
            "__metadata__": {
                "format": "rlhfkit-tokens",
                "version": VERSION,
                **self._metadata,
                "num_tokens": str(self.num_tokens),
                "num_docs": str(self.num_docs),
                "sha256": digest,
            },
            "doc_offsets": {"dtype": "I64", "shape": [self.num_docs + 1], "data_offsets": [0, ends]},
            "tokens": {
                "dtype": "U16" if self._dtype.itemsize == 2 else "U32",
                "shape": [self.num_tokens],
                "data_offsets": [ends, ends + size],
            },
        }
        text = msgspec.json.encode(header)
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def write_shard(
    path: str | os.PathLike[str],
    documents: Sequence[Sequence[int]],
    *,
    tokenizer_digest: str,
    vocab_size: int,
    force: bool = False,
) -> None:
    """Write documents (token ids, end token included) as one shard."""
    path = Path(path)
    with ShardWriter(path.parent, tokenizer_digest=tokenizer_digest, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add(np.array(document, dtype=token_dtype(vocab_size)).tobytes(), [len(document)])
        writer.finish(path, force=force)


def write_shards(
    directory: Path,
    pieces: Iterable[tuple[bytes, Sequence[int]]],
    limit: int,
    *,
    tokenizer_digest: str,
    vocab_size: int,
) -> int:
    """Write `shard-00000.safetensors` and so on; a shard ends with the document that reaches `limit` tokens.

    `pieces` are as for `ShardWriter.add`. Returns the number of shards.
    """
    width = token_dtype(vocab_size).itemsize
    number = 0

    def new() -> ShardWriter:
        return ShardWriter(directory, tokenizer_digest=tokenizer_digest, vocab_size=vocab_size)

    def finish() -> None:
        nonlocal number
        writer.finish(directory / f"shard-{number:05}.safetensors")
        number += 1

    writer = new()
    try:
        for tokens, ends in pieces:
            start = 0
            within: list[int] = []
            for end in ends:
                within.append(end - start)
                if writer.num_tokens + within[-1] >= limit:
                    writer.add(tokens[start * width : end * width], within)
                    finish()
                    writer, start, within = new(), end, []
            writer.add(tokens[start * width :], within)
        if writer.num_tokens:
            finish()
    finally:
        writer.close()
    return number


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise InputOutputError(f"cannot write: {e.strerror or e}", where=str(directory)) from e


# -- reading ----------------------------------------------------------------------------------------------


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def open_shard(path: str | os.PathLike[str], *, check: bool = True) -> Shard:
    """Open a shard; the arrays are memory maps.

    `check` reads it once and verifies the SHA-256, the ids and the document bounds (about 1 GB/s); without
    it only the header is read. Raises InputMissing (66) or DataError (65), which names the first bad id.
    """
    path = Path(path)
    where = str(path)
    with _open_regular(path) as file:
        metadata, tensors, start = _read_header(file, where)
        shard = _shard(path, file, metadata, tensors, start)
        if check:
            file.seek(start)
            _check_data(file, shard, list(tensors), metadata.get("sha256"))
    return shard


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise InputMissing(e.strerror or "cannot be opened", where=str(path)) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputMissing("not a regular file", where=str(path))
    with os.fdopen(fd, "rb") as file:
        yield file


def _read_header(file: BinaryIO, where: str) -> tuple[dict[str, str], dict[str, _Tensor], int]:
    """(metadata, tensors in the order of their data, where the data start). Raises DataError."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    if len(first) < 8:
        raise DataError(f"not a token shard: {size} bytes", where=where)
    (length,) = struct.unpack("<Q", first)
    if length > min(_LONGEST_HEADER, size - 8):
        raise DataError("not a token shard: no safetensors header", where=where)
    try:
        header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str])
        tensors = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in header.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DataError(f"not a token shard: bad header: {e}", where=where) from None
    if set(tensors) != {"tokens", "doc_offsets"}:
        names = ", ".join(sorted(tensors)[:5]) or "nothing"
        raise DataError(
            f"not a token shard: it holds {names}", where=where, hint="make one with rlhfkit tokenize"
        )
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].data_offsets))
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or (tensor.dtype == "I64") != (name == "doc_offsets"):
            raise DataError(f"{name} has the type {tensor.dtype}", where=where)
        begin, stop = tensor.data_offsets
        width = _DTYPES[tensor.dtype].itemsize
        if begin != end or len(tensor.shape) != 1 or not 0 <= tensor.shape[0] == (stop - begin) / width:
            raise DataError(f"{name}: shape {tensor.shape} does not fit bytes {begin} to {stop}", where=where)
        end = stop
    if size != 8 + length + end:
        what = "truncated" if size < 8 + length + end else "too long"
        raise DataError(f"{what}: {size} bytes, {8 + length + end} needed", where=where)
    return metadata, tensors, 8 + length


def _shard(
    path: Path, file: BinaryIO, metadata: dict[str, str], tensors: dict[str, _Tensor], start: int
) -> Shard:
    where = str(path)
    version = metadata.get("version")
    if version != VERSION:
        raise DataError(f"format version {version} (this rlhfkit reads {VERSION})", where=where)
    tokens, offsets = tensors["tokens"], tensors["doc_offsets"]
    counts = {"num_tokens": tokens.shape[0], "num_docs": offsets.shape[0] - 1}
    for name, count in counts.items():
        if metadata.get(name) != str(count):
            raise DataError(
                f"{name} is {metadata.get(name)} in the metadata, {count} in the data", where=where
            )
    if not tokens.shape[0]:
        raise DataError("holds no tokens", where=where)
    vocab_size = metadata.get("vocab_size", "")
    if not vocab_size.isdecimal() or not 0 < int(vocab_size) <= 2**32:
        raise DataError(f"vocab_size is {vocab_size!r} in the metadata", where=where)
    if tokens.dtype == "U16" and int(vocab_size) > 2**16:
        raise DataError(f"16 bits are too narrow for a vocabulary of {vocab_size}", where=where)

    def mapped(tensor: _Tensor) -> npt.NDArray[Any]:
        return np.memmap(
            file, _DTYPES[tensor.dtype], "r", offset=start + tensor.data_offsets[0], shape=tuple(tensor.shape)
        )

    return Shard(path, mapped(tokens), mapped(offsets), metadata.get("tokenizer_digest", ""), int(vocab_size))


def _check_data(file: BinaryIO, shard: Shard, order: Sequence[str], sha256: str | None) -> None:
    """Read all data once; raise DataError at the first wrong id or document bound, or for a changed bit."""
    where = str(shard.path)
    digest = hashlib.sha256()
    arrays = {"doc_offsets": shard.doc_offsets, "tokens": shard.tokens}
    for name in order:
        array = arrays[name]
        before = 0
        for at in range(0, len(array), _WINDOW // array.itemsize):
            block = file.read(min(_WINDOW, (len(array) - at) * array.itemsize))
            digest.update(block)
            values = np.frombuffer(block, dtype=array.dtype)
            if name == "tokens":
                _check_ids(values, at, shard, where)
            else:
                before = _check_bounds(values, at, before, shard, where)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise DataError("its data have changed since it was written (SHA-256 differs)", where=where)


def _check_ids(values: npt.NDArray[Any], at: int, shard: Shard, where: str) -> None:
    if int(values.max()) >= shard.vocab_size:
        bad = int(np.argmax(values >= shard.vocab_size))
        raise DataError(
            f"token {at + bad} has id {int(values[bad])}, but the vocabulary has {shard.vocab_size}",
            where=where,
        )


def _check_bounds(values: npt.NDArray[Any], at: int, before: int, shard: Shard, where: str) -> int:
    """Check a stretch of doc_offsets that starts at document `at`; returns its last value."""
    if at == 0 and values[0] != 0:
        raise DataError(f"doc_offsets starts at {int(values[0])}, not at 0", where=where)
    steps = np.diff(values, prepend=before)
    if steps.min() < 0:
        raise DataError(f"doc_offsets decreases at document {at + int(np.argmax(steps < 0))}", where=where)
    last = int(values[-1])
    if at + len(values) == len(shard.doc_offsets) and last != len(shard.tokens):
        raise DataError(f"doc_offsets ends at {last}, not at {len(shard.tokens)}", where=where)
    return last
