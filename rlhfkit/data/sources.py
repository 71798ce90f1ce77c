"""Bytes of an input: a file, a `.gz`, a pipe or standard input, cut into lines with bounded memory."""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from rlhfkit.data.strict import is_plain
from rlhfkit.errors import DataError, InputMissing, InputOutputError

#: Bytes asked of one read. Small enough that the records of a block stay in the processor's cache.
READ_BYTES = 1 << 17
#: A compressed input may grow this much at most, once it has grown past GZIP_FLOOR bytes.
GZIP_RATIO = 200
GZIP_FLOOR = 64 << 20
STDIN = "-"

Read = Callable[[], bytes]  # the next bytes, b"" at the end

UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MAGIC = b"\x1f\x8b"
#: Of a line over the limit, this much is kept for the rejects.
_KEPT = 1 << 10


@dataclass(frozen=True)
class Block:
    """The lines that one read completed."""

    source: str  # name for messages
    line: int  # number of the first line, from 1
    offset: int  # byte offset of the first line in the (unpacked) input
    lines: list[bytes]  # without their LF
    plain: bool = False  # `rlhfkit.data.strict.is_plain` of all of it
    crlf: bool = False  # some lines end in CR
    too_long: bool = False  # the only line is the beginning of one over the limit


def display_name(name: str) -> str:
    """How an input is called in messages."""
    return "<stdin>" if name == STDIN else name


@contextmanager
def open_input(name: str) -> Iterator[Read]:
    """Open `name` ("-" is standard input) and give a function that returns its next bytes.

    One call makes one read, so what a pipe holds comes out at once. Raises InputMissing (66) when the input
    cannot be opened, DataError (65) for text that is not UTF-8 or for gzip data that is bad or not named so.
    """
    where = display_name(name)
    stream = _open(name)
    try:
        read = _reader(stream, where)
        if name.endswith(".gz"):
            read = _unpacked(read, where)
        yield _checked_start(read, where)
    finally:
        if name != STDIN:
            stream.close()


def _open(name: str) -> BinaryIO:
    check_inputs([name])
    if name == STDIN:
        return cast(BinaryIO, sys.stdin.buffer)
    try:
        return open(name, "rb", buffering=0)
    except OSError as error:
        raise InputMissing(f"cannot open: {(error.strerror or str(error)).lower()}", where=name) from error


def _reader(stream: BinaryIO, where: str) -> Read:
    # read1 of a buffered stream and read of a raw one both return what one system call gives.
    read = stream.read1 if isinstance(stream, io.BufferedReader | io.BytesIO) else stream.read

    def next_bytes() -> bytes:
        try:
            return read(READ_BYTES)
        except OSError as error:
            raise InputOutputError(
                f"cannot read: {(error.strerror or str(error)).lower()}", where=where
            ) from error

    return next_bytes


def _checked_start(read: Read, where: str) -> Read:
    """Refuse UTF-16 text, and gzip data under another name. The first bytes given are at least three."""
    start = read()
    while 0 < len(start) < len(UTF8_BOM) and (more := read()):
        start += more
    if start.startswith(_GZIP_MAGIC):
        hint = "gzip -dc FILE | ..." if where == "<stdin>" else f"rename it to {where}.gz"
        raise DataError("gzip data in an input not named .gz", where=where, hint=hint)
    if start.startswith(_UTF16_BOMS) or b"\0" in start[:2]:
        raise DataError("UTF-16 text (byte offset 0)", where=where, hint="iconv -f UTF-16 -t UTF-8")
    first = [start]
    return lambda: first.pop() if first else read()


def _unpacked(read: Read, where: str) -> Read:
    """Unpack gzip members as they come, with memory bounded and growth limited."""
    unpacker = zlib.decompressobj(wbits=31)
    data, taken, given = b"", 0, 0

    def next_bytes() -> bytes:
        nonlocal unpacker, data, taken, given
        while True:
            if not data and not (data := read()):
                if unpacker.eof or not taken:
                    return b""
                raise DataError("gzip data end too early: the file is cut short", where=where)
            if unpacker.eof:
                # Zeros may pad a member; anything else begins the next one.
                if not (data := data.lstrip(b"\0")):
                    continue
                unpacker = zlib.decompressobj(wbits=31)
            before = len(data)
            try:
                out = unpacker.decompress(data, READ_BYTES)
            except zlib.error as error:
                raise DataError(f"bad gzip data: {error}", where=where) from None
            data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            taken += before - len(data)
            given += len(out)
            if given > max(GZIP_FLOOR, GZIP_RATIO * taken):
                raise DataError(f"gzip data grow more than {GZIP_RATIO} times", where=where)
            if out:
                return out

    return next_bytes


def line_blocks(name: str, limit: int) -> Iterator[Block]:
    """The lines of an input, cut at LF only, as many at a time as one read completed.

    Of a line over `limit` bytes only the beginning is kept, and the rest is read past.
    """
    source = display_name(name)
    number, offset = 1, 0
    held: list[bytes] = []  # the pieces of a line whose end has not come yet
    size, skipping, started = 0, False, False
    with open_input(name) as read:
        while chunk := read():
            if not started and chunk.startswith(UTF8_BOM):
                chunk, offset = chunk[len(UTF8_BOM) :], len(UTF8_BOM)
            started = True
            if skipping:
                before, end, chunk = chunk.partition(b"\n")
                offset += len(before) + len(end)
                skipping = not end
                number += len(end)
            whole, end, tail = chunk.rpartition(b"\n")
            if end:
                block = _block(source, number, offset, b"".join([*held, whole, end]))
                yield block
                number += len(block.lines)
                offset += size + len(whole) + 1
                held, size = [], 0
            if tail:
                held.append(tail)
                size += len(tail)
            if size > limit:
                yield Block(source, number, offset, [b"".join(held)[:_KEPT]], too_long=True)
                offset += size
                held, size, skipping = [], 0, True
    if held:
        yield _block(source, number, offset, b"".join([*held, b"\n"]))


def _block(source: str, number: int, offset: int, text: bytes) -> Block:
    # Twice as fast as bytes.split.
    lines = [line[:-1] for line in io.BytesIO(text)]
    return Block(source, number, offset, lines, is_plain(text), b"\r" in text)


def check_inputs(names: Iterable[str]) -> None:
    """Raise InputMissing for the first name that cannot be opened, before anything is read or written."""
    for name in names:
        if name != STDIN:
            if os.path.isdir(name):
                raise InputMissing("is a directory", where=name, hint="name a file")
            if not os.path.exists(name):
                raise InputMissing("no such file", where=name)
            if not os.access(name, os.R_OK):
                raise InputMissing("permission denied", where=name)
        elif sys.stdin is None:
            raise InputMissing("standard input is closed", hint="name a file, or pipe records in")
