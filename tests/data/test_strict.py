"""Strict JSON: the fast path accepts nothing that a plain strict parser refuses, and changes nothing."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhfkit.data.strict import Malformed, Parser, is_plain

# -- an oracle that shares no code with the package ---------------------------------------------------------


class Refused(Exception):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise Refused("duplicate")
    return dict(pairs)


def _float(text: str) -> float:
    if math.isinf(float(text)):
        raise Refused("not finite")
    return float(text)


def _constant(text: str) -> Any:
    raise Refused(text)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for item in value.items() for part in item for s in strings(part)]
    return [s for item in value for s in strings(item)] if isinstance(value, list) else []


def oracle(line: bytes) -> dict[str, Any] | None:
    """What the line says, None if it must be refused."""
    try:
        text = line.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_pairs, parse_float=_float, parse_constant=_constant)
    except (Refused, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or depth(value) > 64:
        return None
    if any("\ud800" <= c <= "\udfff" for s in strings(value) for c in s):
        return None
    return value


def parsed(line: bytes, parser: Parser | None = None) -> dict[str, Any] | None:
    """The same by the code under test; also checks that it spells everything as the line does."""
    try:
        fields, parts = (parser or Parser()).parse(line, is_plain(line))
    except Malformed:
        return None
    values = {key: json.loads(bytes(raw)) for key, raw in fields.items()}
    spelled = {"parse_float": str, "parse_int": str}
    assert {k: json.loads(bytes(raw), **spelled) for k, raw in fields.items()} == json.loads(line, **spelled)
    for key, part in parts.items():
        assert not isinstance(values[key], str)
        decoded = (
            [json.loads(item) if type(item) is bytes else item for item in part]
            if isinstance(part, list)
            else part
        )
        assert decoded == values[key]
    assert {key for key, value in values.items() if not isinstance(value, str)} == parts.keys()
    for key, raw in fields.items():
        if isinstance(values[key], str):
            assert bytes(raw) == msgspec.json.encode(values[key]), "escapes that need not be are written out"
    return values


# -- JSON as strange as it comes -----------------------------------------------------------------------------

spaces = st.sampled_from(["", "", "", " ", "  ", "\t", "\r"])
PIECES = [
    "a",
    "b",
    " ",
    ":",
    '\\"',
    "\\\\",
    "\\/",
    "\\n",
    "\\u0041",
    "\\u00e9",
    "é",
    "\u2028",
    "😀",
    "{",
    "[",
    "]",
    "}",
    ",",
]
PIECES += [
    "\\ud83d\\ude00",
    "\\ud83d",
    "\\ude00",
    "\\u0000",
    '\\":',
    '\\" ',
    "\\\\u00e9",
    "\\\\\\u00e9",
    "%b",
    "%",
]
characters = st.sampled_from(PIECES)
quoted = st.lists(characters, max_size=6).map(lambda parts: '"' + "".join(parts) + '"')
keys = st.one_of(st.sampled_from(['"a"', '"b"', '"prompt"', '"\\u0061"', '"%"', '"é"', '""']), quoted)
NUMBERS = "0 -0 1 1.0 1.10 1e5 1E+5 1e-07 1e999 -1e999 NaN Infinity -Infinity 01 1. .5 9007199254740993.0 1e22 5e-324"
NUMBERS += " 123456789012345678901234567890 0.1000000000000000055"
numbers = st.sampled_from(NUMBERS.split())
scalars = st.one_of(quoted, quoted, numbers, st.sampled_from(["true", "false", "null", "tru", "''"]))


def _list(items: list[str], a: str, b: str) -> str:
    return "[" + a + ("," + b).join(items) + a + "]"


def _object(items: list[tuple[str, str]], a: str, b: str, c: str) -> str:
    return "{" + a + ("," + b).join(key + c + ":" + b + value for key, value in items) + a + "}"


def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds(_list, st.lists(inner, max_size=4), spaces, spaces),
        st.builds(
            _object,
            st.lists(st.tuples(keys, inner), max_size=4),
            spaces,
            spaces,
            st.sampled_from(["", "", "", " "]),
        ),
    )


values = st.recursive(scalars, containers, max_leaves=12)
objects = st.builds(
    _object, st.lists(st.tuples(keys, values), max_size=5), spaces, st.sampled_from(["", " "]), st.just("")
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(objects, values), spaces)
@example('{"a":1,"b":2,"c":3,"d":"x","a":1}', "")
@example('{"a": 1, "a": 1}', "")
@example('{"a":[{"b":1,"b":1}]}', "")
@example('{"a": "\\ud800"}', "")
@example('\\u007b"a":1}', "")
def test_the_fast_path_agrees_with_a_strict_parser(text: str, end: str):
    line = (text + end).encode()
    assert parsed(line) == oracle(line)


@settings(max_examples=300, deadline=None)
@given(objects, st.integers(0, 10**6))
def test_damaged_lines_too(text: str, seed: int):
    rng = random.Random(seed)
    line = bytearray(text.encode())
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(line) + 1)
        line[place : place + rng.randint(0, 2)] = rng.choice(
            [b"", b'"', b"\\", b"\xff", b"\xc3", b",", b"}", b"\x00", b"\x1f"]
        )
    damaged = bytes(line).replace(b"\n", b"")
    assert parsed(damaged) == oracle(damaged)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(objects, objects), min_size=1, max_size=6))
def test_a_parser_that_has_seen_other_lines_reads_the_same(pairs: list[tuple[str, str]]):
    parser = Parser()
    for text in (text for pair in pairs for text in pair * 2):
        assert parsed(text.encode(), parser) == oracle(text.encode())


def test_every_style_of_a_python_writer_is_read():
    record = {
        "p": "naïve “q” \\ \n",
        "n": [1.5, None, True],
        "m": [{"role": "user", "content": "é"}],
        "t": ["a", "b"],
    }
    for ascii_only in (True, False):
        for separators in (None, (",", ":"), (", ", ":")):
            line = json.dumps(record, ensure_ascii=ascii_only, separators=separators).encode()
            assert parsed(line) == record


@pytest.mark.parametrize("levels", [64, 65, 66, 500, 200_000])
def test_depth(levels: int):
    """The object is the first level."""
    for line in (
        b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}",
        b'{"a":' * levels + b"1" + b"}" * levels,
    ):
        if levels <= 64:
            assert parsed(line) == oracle(line) is not None
        else:
            with pytest.raises(Malformed, match="nested deeper than 64 levels"):
                Parser().parse(line, True)


def problem(line: bytes) -> Malformed:
    with pytest.raises(Malformed) as caught:
        Parser().parse(line, is_plain(line))
    return caught.value


@pytest.mark.parametrize(
    ("line", "message", "column"),
    [
        (b'{"a": 1,}', "not JSON", None),
        (b"{'a': 1}", "not JSON", 2),
        (b'{"a": 1} {"a": 2}', "more than one value", 10),
        (b'{"a": NaN}', "NaN is not finite", 7),
        (b'{"NaN": "NaN", "b": -Infinity}', "-Infinity is not finite", 21),
        (b'{"a": 1e999}', "1e999 is not finite", None),
        (b'{"a": 1, "a": 1}', 'duplicate key "a"', None),
        (b'{"a": [{"b": 1, "b": 2}]}', 'duplicate key "b"', None),
        (b'{"a": "x\\ud800"}', "lone surrogate", 9),
        (b"[1]", "expected an object, got a list", 1),
        (b'"text"', "expected an object, got a string", 1),
        (b"12", "expected an object, got an integer", 1),
        (b"null", "expected an object, got null", 1),
        ('{"é": }'.encode(), "not JSON", 7),
        (b'{"a": "cut', "not JSON: unterminated string", 7),
        (b'\xef\xbb\xbf{"a": 1}', "byte-order mark", 1),
        (b'{"n": ' + b"1" * 10_000 + b"}", "10,000 digits", None),
    ],
)
def test_messages(line: bytes, message: str, column: int | None):
    found = problem(line)
    assert message in found.message
    if column is not None:
        assert found.column == column


def test_invalid_utf8_is_placed_in_bytes():
    found = problem('{"é": "'.encode() + b'\xff"}')
    assert (found.message, found.offset) == ("not UTF-8", 8)


def test_hints():
    assert "double quotes" in str(problem(b"{'a': 1}").hint)
    assert "one object a line" in str(problem(b"{} {}").hint)
    assert "several lines" in str(problem(b'{"a":').hint)
