"""Documents: whole texts for the tokenizer, from plain text files and from JSONL with a `text` field.

A file named .jsonl, .ndjson or .json (or one of these with .gz) holds JSON lines; any other file is plain
text and one document, unless it is split at blank lines. Standard input holds JSON lines if its first
character that is not blank is `{`. A long document comes in parts, so that memory stays bounded.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby
from typing import Literal, NamedTuple, cast

from rlhfkit.config import ReadConfig
from rlhfkit.data.jsonl import Source
from rlhfkit.data.records import Text, read_records
from rlhfkit.data.sources import STDIN, UTF8_BOM, check_inputs, display_name, open_input
from rlhfkit.errors import DataError, UsageError

Format = Literal["auto", "text", "jsonl"]
Split = Literal["none", "blank-line"]

#: A document longer than this many characters comes in parts of about this size.
PART = 2**17
#: If a text has no place to cut it (no line end, no space), it is cut anyway at this many characters.
LONGEST_PART = 8 * PART

_JSON_NAMES = re.compile(r"\.(jsonl|ndjson|json)(\.gz)?$", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\r?\n(?:[ \t\r]*\n)+")
_LEADING_BLANK_LINES = re.compile(r"(?:[ \t\r]*\n)+")
#: Where a text is cut: before a space between two words, which no tokenizer's word joins; if there is
#: none, after a line end between two words.
_CUTS = (re.compile(r"(?<=\S)(?= \S)"), re.compile(r"(?<=\S\n)(?=\S)"))


class Part(NamedTuple):
    """A stretch of a document."""

    text: str
    first: bool  # it starts the document
    last: bool  # it ends the document


def read_documents(
    inputs: Source, reading: ReadConfig, *, field: str = "text", form: Format = "auto", split: Split = "none"
) -> Iterator[Part]:
    """The documents of the inputs in order, each as one part or several; empty ones are passed over.

    `field` is where a JSON line has its text. Raises InputMissing and DataError as `read_records` does.
    """
    if field != "text":
        reading = replace(reading, map=(*reading.map, f"text={field}"))
    names = _file_names(inputs)
    if names is None:
        return _limited(_json_parts(inputs, reading), reading.limit)
    check_inputs(names)
    groups = [(is_json, list(group)) for is_json, group in groupby(names, lambda name: _is_json(name, form))]
    if reading.rejects is not None and sum(is_json for is_json, _ in groups) > 1:
        raise UsageError("name the JSONL files one after another", where="--rejects")
    parts = (
        part
        for is_json, group in groups
        for part in (_json_parts(group, reading) if is_json else _plain_parts(group, split))
    )
    return _limited(parts, reading.limit)


def _file_names(inputs: Source) -> list[str] | None:
    """File names as strings, or None if the inputs are records."""
    given = list(inputs) if isinstance(inputs, Sequence) else None
    if given is None or any(isinstance(item, Mapping) for item in given):
        return None
    return [os.fspath(cast("str | os.PathLike[str]", item)) for item in given] or [STDIN]


def _is_json(name: str, form: Format) -> bool:
    if form != "auto":
        return form == "jsonl"
    if name != STDIN:
        return _JSON_NAMES.search(name) is not None
    stream = sys.stdin.buffer
    if isinstance(stream, io.BufferedReader):
        start = stream.peek(1)
    else:
        at = stream.tell()
        start = stream.read(PART)
        stream.seek(at)
    return start.removeprefix(UTF8_BOM).lstrip().startswith(b"{")


def _limited(parts: Iterable[Part], limit: int | None) -> Iterator[Part]:
    if limit == 0:
        return
    count = 0
    for part in parts:
        yield part
        count += part.last
        if limit is not None and count >= limit:
            return


def _json_parts(inputs: Source, reading: ReadConfig) -> Iterator[Part]:
    for record in read_records(inputs, Text, reading):
        if len(text := record.text) > PART:
            yield from _parts([text])
        elif text:
            yield Part(text, True, True)


def _plain_parts(names: Sequence[str], split: Split) -> Iterator[Part]:
    for name in names:
        yield from _parts(_decoded(name), split=split == "blank-line")


def _parts(texts: Iterable[str], *, split: bool = False) -> Iterator[Part]:
    """One document, given in any pieces, as parts cut between words; `split`: one from each paragraph."""
    held = ""
    first = True
    for text, more in chain(((text, True) for text in texts), [("", False)]):
        held += text
        at = 0
        while True:
            if split and first and (blank := _LEADING_BLANK_LINES.match(held, at)):
                at = blank.end()
            end = _BLANK_LINES.search(held, at) if split else None
            if end and (end.end() < len(held) or not more):
                yield Part(held[at : end.start()], first, True)
                at, first = end.end(), True
                continue
            cut = _cut_point(held, at)
            if cut is None:
                break
            yield Part(held[at:cut], first, False)
            at, first = cut, False
        held = held[at:]
    held = held.rstrip() if split else held
    if held or not first:
        yield Part(held, first, True)


def _cut_point(text: str, start: int) -> int | None:
    """Where to end a part that starts at `start`; None if what is left is short, or to wait for more."""
    if len(text) - start <= PART:
        return None
    for cut in _CUTS:
        if found := cut.search(text, start + PART // 2):
            return found.start()
    return start + LONGEST_PART if len(text) - start > LONGEST_PART else None


def _decoded(name: str) -> Iterator[str]:
    """The text of a plain file in blocks. Raises DataError at the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    with open_input(name) as read:
        block = read().removeprefix(UTF8_BOM)
        while True:
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as e:
                offset = at - (len(e.object) - len(block)) + e.start
                raise DataError(
                    f"not UTF-8 at byte {offset}", where=display_name(name), hint="iconv -t UTF-8"
                ) from None
            if text:
                yield text
            if not block:
                return
            at += len(block)
            block = read()
