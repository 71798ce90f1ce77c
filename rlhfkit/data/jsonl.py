"""JSON lines in and out: streams of rows that know the file and line they came from.

`read_rows` gives the objects of its inputs as they stand; `rlhfkit.data.records` makes checked records of
them. Memory is bounded by one read (128 KiB) and the longest line, whatever the length of the input.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, BinaryIO, Generic, TypeVar, overload

import msgspec

from rlhfkit import context
from rlhfkit.config import ReadConfig, TrainConfig
from rlhfkit.data.rows import Row, parse_map
from rlhfkit.data.sources import STDIN, Block, check_inputs, line_blocks
from rlhfkit.data.strict import Fields, Malformed, Parser
from rlhfkit.errors import BadRecords, DataError, RlhfkitError, UsageError
from rlhfkit.files import atomic_file

T = TypeVar("T")
Record = dict[str, object]
#: File names ("-" is standard input), or records given by a Python caller.
Source = Sequence[str | os.PathLike[str]] | Iterable[Mapping[str, object]]

MAX_ERRORS = 10
_RECORDS_PER_BLOCK = 256
_decode_fields = msgspec.json.Decoder(Fields).decode
_encoder = msgspec.json.Encoder()


class Reader(Generic[T]):
    """Items made of the rows of some inputs; iterate over it, or take `batches`.

    `count` good ones came so far, `bad` were skipped, `blank` lines were passed over.
    """

    def __init__(
        self,
        inputs: Source,
        reading: ReadConfig,
        convert: Callable[[Row], T],
        remarks: Mapping[str, int] | None = None,
    ) -> None:
        """`remarks` are counts that `convert` keeps; they are told when all is read."""
        self._remarks = remarks if remarks is not None else {}
        self._reading = reading
        self._convert = convert
        self._parser = Parser()
        self._renames = tuple(parse_map(setting) for setting in reading.map)
        self._unused = set(self._renames)
        self._first_bad: DataError | None = None
        self.count = self.bad = self.blank = 0
        names = _file_names(inputs)
        _check_rejects(reading, names or [])
        if names is None:
            self._blocks: Iterator[Block] = _blocks_of_records(inputs)  # type: ignore[arg-type]
        else:
            check_inputs(names)
            self._blocks = (b for name in names for b in line_blocks(name, reading.max_line_bytes))

    def __iter__(self) -> Iterator[T]:
        for batch in self.batches():
            yield from batch

    def batches(self, size: int | None = None) -> Iterator[list[T]]:
        """Lists of `size` items, or (None) of whatever one read completed, at once.

        At a bad row the items before it come out first, then its DataError is raised.
        """
        held: list[T] = []
        with self._rejects() as rejects:

            def skip(error: DataError, block: Block, index: int) -> bool:
                if self._reading.on_bad_line == "skip":
                    _write_reject(rejects, error, block, index)
                    return True
                return False

            while not self._enough():
                error: RlhfkitError | None = None
                try:
                    items, error = self._items(next(self._blocks), skip)
                    held += items
                except StopIteration:
                    break
                except RlhfkitError as failure:
                    error = failure
                while held and len(held) >= (size or 1):
                    yield held[:size]
                    held = held[size:] if size else []
                if error is not None:
                    if held:
                        yield held
                    raise error
            if held:
                yield held
        self._say_what_was_skipped()

    def read_all(self) -> list[T]:
        """All items. Raises DataError when there are none, and what `whole` raises."""
        items = list(self.whole())
        if not items:
            raise DataError("no records", hint="the input is empty")
        return items

    def whole(self) -> Iterator[T]:
        """Every item, for whoever needs all of them: with bad rows, what follows the first is only checked.

        Raises BadRecords (the first ten errors) when all has been read, or DataError if one row was bad.
        """
        if self._reading.on_bad_line == "skip":
            yield from self
            return
        errors: list[DataError] = []

        def collect(error: DataError, block: Block, index: int) -> bool:
            errors.append(error) if len(errors) < MAX_ERRORS else None
            return True

        while not self._enough() and (block := next(self._blocks, None)) is not None:
            items, _ = self._items(block, collect)
            if not errors:
                yield from items
        if self.bad > 1:
            raise BadRecords(errors, more=self.bad - len(errors))
        if errors:
            raise errors[0]
        self._say_what_was_skipped()

    def _enough(self) -> bool:
        return self._reading.limit is not None and self.count >= self._reading.limit

    def _items(
        self, block: Block, on_bad: Callable[[DataError, Block, int], bool]
    ) -> tuple[list[T], DataError | None]:
        """The items of a block up to the first bad row for which `on_bad` is False, and its error."""
        items: list[T] = []
        source, renames, limit = block.source, self._renames, self._reading.max_line_bytes
        parse, plain = self._parser.parse, block.plain
        room = None if self._reading.limit is None else self._reading.limit - self.count
        for index, raw in enumerate(block.lines):
            if not raw or raw.isspace():
                self.blank += 1
                continue
            if room is not None and len(items) >= room:
                break
            try:
                if block.too_long or len(raw) > limit:
                    raise Malformed(f"line longer than {limit:,} bytes", hint="--max-line-bytes allows more")
                text = raw.removesuffix(b"\r") if block.crlf else raw
                fields, parts = parse(text, plain)
                row = Row(source, block.line + index, raw, fields, parts)
                for rename in renames:
                    if row.map(*rename):
                        self._unused.discard(rename)
                items.append(self._convert(row))
            except (Malformed, DataError) as problem:
                error = _data_error(problem, block, index) if isinstance(problem, Malformed) else problem
                self.bad += 1
                self._first_bad = self._first_bad or error
                if not on_bad(error, block, index):
                    self.count += len(items)
                    return items, error
        self.count += len(items)
        return items, None

    @contextmanager
    def _rejects(self) -> Iterator[BinaryIO | None]:
        reading = self._reading
        trainer = isinstance(reading, TrainConfig)
        if reading.rejects is None or (trainer and getattr(reading, "dry_run", False)):
            with nullcontext() as nothing:
                yield nothing
            return
        # A trainer that resumes reads its records again and finds the same ones bad.
        with atomic_file(reading.rejects, force=trainer or bool(getattr(reading, "force", False))) as file:
            yield file

    def _say_what_was_skipped(self) -> None:
        if self.bad:
            kept = f", kept in {self._reading.rejects}" if self._reading.rejects else ""
            first = f"; the first: {self._first_bad}"
            context.note(f"skipped {self.bad} bad record{'s' if self.bad > 1 else ''}{kept}{first}")
        for new, path in self._unused if self.count else ():
            context.warn(f"no record has what --map {new}={'.'.join(path)} names")
        for remark, count in self._remarks.items():
            context.warn(f"{count} {remark}")
        if not self.count and self._reading.limit != 0:
            context.note("no records in the input")


def read_rows(inputs: Source, reading: ReadConfig) -> Reader[Row]:
    """Rows of JSONL files, of standard input, or of records given by a Python caller, in order.

    Raises UsageError, InputMissing at once; DataError and InputOutputError while iterating.
    """
    return Reader(inputs, reading, lambda row: row)


# -- inputs ------------------------------------------------------------------------------------------------


def _file_names(inputs: Source) -> list[str] | None:
    """The names, or None when `inputs` are records."""
    if isinstance(inputs, str | os.PathLike):
        return [os.fspath(inputs)]
    if isinstance(inputs, Sequence) and all(isinstance(item, str | os.PathLike) for item in inputs):
        return [os.fspath(item) for item in inputs]
    return None


def _blocks_of_records(records: Iterable[Mapping[str, object]]) -> Iterator[Block]:
    """Records of a Python caller as lines: from a list many at once, from a generator one by one."""
    block_size = 1 if isinstance(records, Iterator) else _RECORDS_PER_BLOCK
    lines: list[bytes] = []
    first = 1
    for number, record in enumerate(records, start=1):
        try:
            if not isinstance(record, Mapping):
                raise TypeError(f"expected a mapping, got {type(record).__name__}")
            lines.append(encode(record))
        except (ValueError, TypeError) as error:
            if lines:
                yield Block("<records>", first, 0, lines)
            raise DataError(str(error), where=f"<records>:{number}") from None
        if len(lines) == block_size:
            yield Block("<records>", first, 0, lines)
            lines, first = [], number + 1
    if lines:
        yield Block("<records>", first, 0, lines)


def _check_rejects(reading: ReadConfig, names: Sequence[str]) -> None:
    if reading.rejects is None:
        return
    if reading.on_bad_line != "skip":
        raise UsageError("needs --on-bad-line skip", where="--rejects")
    rejects = os.path.realpath(reading.rejects)
    output = getattr(reading, "output", None)
    if rejects in map(os.path.realpath, [*names, *([output] if output else [])]):
        raise UsageError(f"{reading.rejects} is an input or the output", where="--rejects")


def _data_error(problem: Malformed, block: Block, index: int) -> DataError:
    where, message = f"{block.source}:{block.line + index}", problem.message
    if problem.column is not None:
        where += f":{problem.column}"
    if problem.offset is not None:
        before = sum(len(line) + 1 for line in block.lines[:index])
        message += f" at byte offset {block.offset + before + problem.offset}"
    return DataError(message, where=where, hint=problem.hint)


def _write_reject(file: BinaryIO | None, error: DataError, block: Block, index: int) -> None:
    if file is not None:
        raw = block.lines[index].decode(errors="backslashreplace")
        reject: Record = {
            "source": block.source,
            "line": block.line + index,
            "error": error.message,
            "raw": raw,
        }
        file.write(encode(reject) + b"\n")


# -- writing -----------------------------------------------------------------------------------------------


def encode(record: Mapping[str, object]) -> bytes:
    """One record as compact JSON in UTF-8, without a line end. Raises ValueError for NaN and Infinity."""
    plain = dict(record)
    _refuse_nonfinite(plain)
    return _encoder.encode(plain)


class Lines(Sequence[Record]):
    """Records that are JSON lines already. They are decoded only if somebody looks at them."""

    def __init__(self, text: bytes, count: int) -> None:
        self.text = text
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        return iter(self[:])

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...

    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        lines = self.text.split(b"\n")[:-1][place]
        return _decode_fields(lines) if isinstance(lines, bytes) else list(map(_decode_fields, lines))  # type: ignore[arg-type, return-value]


def encode_lines(batch: Sequence[Record]) -> bytes:
    """Records as JSON lines, each with its LF. Raises ValueError for NaN and Infinity."""
    if isinstance(batch, Lines):
        return batch.text
    if not _PLAIN.issuperset(map(type, chain.from_iterable(map(dict.values, batch)))):
        for record in batch:
            _refuse_nonfinite(record)
    return _encoder.encode_lines(batch)


def _refuse_nonfinite(value: dict[str, Any] | list[Any] | tuple[Any, ...]) -> None:
    # msgspec would write null.
    items: Iterable[Any] = value.values() if isinstance(value, dict) else value
    if _PLAIN.issuperset(map(type, items)):
        return
    for item in items:
        kind = type(item)
        if kind is float:
            if not math.isfinite(item):
                raise ValueError(f"{item} is not finite")
        elif kind is dict or kind is list or kind is tuple:
            _refuse_nonfinite(item)


_PLAIN = frozenset({str, int, bool, type(None), msgspec.Raw})


__all__ = ["STDIN", "Lines", "Reader", "Record", "Row", "Source", "encode", "encode_lines", "read_rows"]
