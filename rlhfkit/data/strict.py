"""One line of JSON, read strictly and fast.

Refused beside what no JSON parser takes: duplicate keys at any level, NaN, Infinity and numbers too big for a
float, lone surrogates, nesting over 64 levels, integers over 4,300 digits, and values that are not objects.

msgspec decodes a line in about 1 ns a byte but keeps the last of duplicate keys. So the line is taken only
if encoding the decoded value gives the line again, white space between tokens aside: whatever was dropped or
changed on the way would show. Every other line goes to the slow path, which decides; among them are spellings
such as `1e-07` or `\\/`, which are fine.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import msgspec

MAX_DEPTH = 64
#: The longest integer, in digits: msgspec's and Python's own limit.
MAX_DIGITS = 4300

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_minify = msgspec.json.format
_STRINGS_AND_CONSTANTS = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
#: Runs of \uXXXX whose first backslash is not itself escaped.
_ESCAPES = re.compile(rb"(?<!\\)((?:\\\\)*)((?:\\u[0-9a-fA-F]{4})+)")


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


def parse(line: bytes) -> tuple[dict[str, Any], bytes]:
    """The object on a line, and the line with escaped non-ASCII characters written out. Raises Malformed."""
    try:
        values = _decode(line)
        if type(values) is dict:
            again = _encode(values)
            if (line == again or _minify(line, indent=-1) == again) and not _too_deep(values):
                return values, line
            if b"\\u" in line:
                text = _unescaped(line)
                if _minify(text, indent=-1) == again and not _too_deep(values):
                    return values, text
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # the slow path says what is wrong, and where
    return _parse_slowly(line)


def _parse_slowly(line: bytes) -> tuple[dict[str, Any], bytes]:
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
    return values, _unescaped(line) if b"\\u" in line else line


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


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_finite_float,
    parse_int=_short_int,
    parse_constant=_refuse_constant,
)


def _column_of_constant(text: str) -> int | None:
    for match in _STRINGS_AND_CONSTANTS.finditer(text):
        if match[1]:
            return match.start() + 1
    return None


def _too_deep(values: dict[str, Any]) -> bool:
    level: list[Any] = [value for value in values.values() if type(value) is dict or type(value) is list]
    depth = 1
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        below: list[Any] = []
        for container in level:
            inside = container.values() if type(container) is dict else container
            below += [value for value in inside if type(value) is dict or type(value) is list]
        level = below
    return False


def _unescaped(line: bytes) -> bytes:
    """Write `\\u00e9` as the character itself. Raises Malformed at half a surrogate pair."""

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
