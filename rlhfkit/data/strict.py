"""One line of JSON, read strictly and fast.

Refused beside what no JSON parser takes: duplicate keys at any level, NaN, Infinity and numbers too big for a
float, lone surrogates, nesting over 64 levels, integers over 4,300 digits, and values that are not objects.

msgspec finds the fields of a line in about half a nanosecond a byte, but keeps the last of duplicate keys.
So a line is taken only if its fields, put together again, give the line: whatever was dropped would show. A
value that holds objects must in the same way be what its decoded form encodes to. Strings are not even
decoded. Every line that fails this goes to the slow path, which decides; among them are unusual spellings of
numbers and spaces in unusual places, which are fine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec

Raw = msgspec.Raw
#: The fields of a line as they are written, in order.
Fields = dict[str, Raw]
#: What is known of the fields that are not strings: a decoded value, or of a list of strings their JSON.
Parts = dict[str, Any]

MAX_DEPTH = 64
#: The longest integer, in digits: msgspec's and Python's own limit.
MAX_DIGITS = 4300

_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_encode = msgspec.json.Encoder().encode
_minify = msgspec.json.format
_QUOTE, _BRACKET = b'"['
_STRINGS_AND_CONSTANTS = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
_AN_ESCAPE = re.compile(rb"\\[u/]").search
#: Runs of \uXXXX and \/ whose first backslash is not itself escaped.
_ESCAPES = re.compile(rb"(?<!\\)((?:\\\\)*)((?:\\u[0-9a-fA-F]{4}|\\/)+)")


class Malformed(Exception):
    """A line that is not acceptable JSON. `column` counts characters, `offset` bytes of the line from 0."""

    def __init__(
        self, message: str, *, column: int | None = None, offset: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.column = column
        self.offset = offset
        self.hint = hint


class _Unsure(Exception):
    """The fast path cannot vouch for this line."""


def is_plain(text: bytes) -> bool:
    """Whether this is UTF-8 without escapes (\\u00e9, \\/) that could be written as the character itself."""
    if _AN_ESCAPE(text) is not None:
        return False
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return False
    return True


class Parser:
    """Parses lines; lines with the same keys as the one before go fastest."""

    def __init__(self) -> None:
        self._count = 0
        self._form = b"{}"  # how the line before was written, with a %b for each value

    def parse(self, line: bytes, plain: bool) -> tuple[Fields, Parts]:
        """The fields of the object on a line. `plain` says that `is_plain(line)`. Raises Malformed.

        Escaped characters come written out where JSON allows it.
        """
        try:
            if not plain and not is_plain(line):
                _decode_fields(line)  # escapes may be touched only inside strings, so it must be JSON
                line = _unescaped(line)
                line.decode()
            fields = _decode_fields(line)
            raws = tuple(fields.values())
            if len(raws) != self._count or self._form % raws != line:
                self._count = len(raws)
                for self._form in _forms(fields):
                    if self._form % raws == line:
                        break
                else:
                    return _parse_slowly(line)
            parts = {}
            for name, raw in fields.items():
                text = bytes(raw)
                if text[0] != _QUOTE:
                    parts[name] = _checked(raw, text)
            return fields, parts
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _Unsure):
            return _parse_slowly(line)  # it says what is wrong, and where


def _forms(keys: Iterable[str]) -> tuple[bytes, bytes]:
    """How an object of these keys is written, with a %b for each value: with spaces, and without."""
    names = [_encode(key).replace(b"%", b"%%") for key in keys]
    return (
        b"{" + b", ".join(b"%b: %%b" % name for name in names) + b"}",
        b"{" + b",".join(b"%b:%%b" % name for name in names) + b"}",
    )


def _checked(raw: Raw, text: bytes) -> Any:
    """The value of a field that is not a string; of a list of strings, the strings undecoded."""
    if text[0] == _BRACKET and text[1] == _QUOTE:
        items = list(map(bytes, _decode_items(raw)))
        for item in items:
            if item[0] != _QUOTE:
                break
        else:
            return items
    value = _decode(raw)
    if b"{" in text and (again := _encode(value)) != text and again != _minify(text, indent=-1):
        raise _Unsure
    if len(text) >= 2 * MAX_DEPTH and _too_deep([value]):
        raise _Unsure
    return value


def _parse_slowly(line: bytes) -> tuple[Fields, Parts]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", offset=error.start, hint="convert the file to UTF-8 (iconv)") from None
    if text.startswith("\ufeff"):
        raise Malformed("byte-order mark inside the input", column=1)
    try:
        values = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(error) from None
    except RecursionError:
        raise Malformed(f"nested deeper than {MAX_DEPTH} levels") from None
    except _NotFinite as error:
        raise Malformed(f"{error} is not finite", column=_column_of_constant(text)) from None
    if not isinstance(values, dict):
        raise Malformed(f"expected an object, got {kind_of(values)}", column=1)
    if _too_deep(values):
        raise Malformed(f"nested deeper than {MAX_DEPTH} levels")
    _unescaped(line)  # refuses lone surrogates
    fields = {key: Raw(_encode(value)) for key, value in _SPELLED.decode(text).items()}
    return fields, {key: value for key, value in values.items() if type(value) is not str}


def _not_json(error: json.JSONDecodeError) -> Malformed:
    text, reason = error.doc, error.msg[0].lower() + error.msg[1:]
    hint = None
    if reason == "extra data":
        reason, hint = "more than one value on the line", "write one object a line"
    elif text[error.pos : error.pos + 1] == "'":
        hint = "strings stand in double quotes"
    elif error.pos >= len(text.rstrip()) or reason.startswith("unterminated"):
        hint = "the line is cut short, or the record spans several lines (jq -c . joins them)"
    return Malformed(f"not JSON: {reason}", column=error.pos + 1, hint=hint)


class _NotFinite(Exception):
    pass


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotFinite(text)
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise _NotFinite(text)


def _short_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Malformed(f"an integer of {len(text):,} digits")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Malformed(f"duplicate key {json.dumps(key)}")
            seen.add(key)
    return values


def _spelled(text: str) -> Raw:
    return Raw(text.encode())


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_finite_float,
    parse_int=_short_int,
    parse_constant=_refuse_constant,
)


#: Keeps numbers as they are spelled.
_SPELLED = json.JSONDecoder(parse_float=_spelled, parse_int=_spelled)


def _column_of_constant(text: str) -> int | None:
    for match in _STRINGS_AND_CONSTANTS.finditer(text):
        if match[1]:
            return match.start() + 1
    return None


def _too_deep(container: dict[str, Any] | list[Any]) -> bool:
    level: list[Any] = [container]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        nested = False
        for item in level:
            kind = type(item)
            if kind is list:
                below += item
                nested = True
            elif kind is dict:
                below += item.values()
                nested = True
        if not nested:
            return False
        level = below
    return True


def _unescaped(line: bytes) -> bytes:
    """Write `\\u00e9` and `\\/` as the character itself. Raises Malformed at half a surrogate pair."""

    def written_out(match: re.Match[bytes]) -> bytes:
        backslashes, escapes = match.groups()
        try:
            return backslashes + _encode(_decode(b'"' + escapes + b'"'))[1:-1]
        except msgspec.MsgspecError:
            column = len(line[: match.start(2)].decode(errors="replace")) + 1
            message = "a lone surrogate escape (half a character)"
            raise Malformed(message, column=column) from None

    return _ESCAPES.sub(written_out, line)


def kind_of(value: object) -> str:
    """What a JSON value is called in messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return type(value).__name__


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (str, "a string"),
    (int, "an integer"),
    (float, "a number"),
    (list, "a list"),
    (dict, "an object"),
)
