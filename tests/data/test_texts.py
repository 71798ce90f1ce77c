"""Documents from plain text and JSON lines."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhfkit.config import ReadConfig
from rlhfkit.data import texts
from rlhfkit.data.texts import Part, read_documents
from rlhfkit.errors import DataError, InputMissing, UsageError


def joined(parts: Iterable[Part]) -> list[str]:
    """Whole documents; checks that first and last alternate as they must."""
    documents: list[str] = []
    current: list[str] | None = None
    for part in parts:
        assert part.first == (current is None)
        current = [*(current or []), part.text]
        if part.last:
            documents.append("".join(current))
            current = None
    assert current is None
    return documents


def read(*names: object, reading: ReadConfig | None = None, **options: str) -> list[str]:
    return joined(read_documents([str(n) for n in names], reading or ReadConfig(), **options))  # type: ignore[arg-type]


def write(path: Path, data: bytes | str) -> Path:
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a", "a.md", "a.txt.gz"])
def test_a_plain_file_is_one_document(tmp_path: Path, name: str) -> None:
    text = "first\n\nsecond line\r\n\u2028\0 end \n"
    assert read(write(tmp_path / name, text)) == [text]
    assert read(write(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == [text]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "A.JSONL"])
def test_json_lines_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '{"text":"a\\nb"}\n\n{"text":"","x":1}\r\n{"text":"c"}')
    assert read(path) == ["a\nb", "c"]
    assert read(path, reading=ReadConfig(limit=1)) == ["a\nb"]


def test_several_inputs_in_order(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.txt", "one")
    lines = write(tmp_path / "b.jsonl", '{"text":"two"}\n{"text":"three"}')
    assert read(plain, lines, plain) == ["one", "two", "three", "one"]
    assert read(plain, lines, plain, reading=ReadConfig(limit=2)) == ["one", "two"]
    assert read(plain, lines, reading=ReadConfig(limit=0)) == []


def test_another_field_and_another_form(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", '{"doc":{"body":"x"}}\n')
    assert read(path, field="doc.body", form="jsonl") == ["x"]
    assert read(write(tmp_path / "a.jsonl", '{"text":1}'), form="text") == ['{"text":1}']


def test_records_of_a_python_caller() -> None:
    records = [{"text": "a"}, {"text": "b"}]
    assert joined(read_documents(records, ReadConfig())) == ["a", "b"]
    assert joined(read_documents(iter(records), ReadConfig())) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'  \n{"text":"a"}\n', ["a"]),
        (b'\xef\xbb\xbf{"text":"a"}\n', ["a"]),
        (b"plain {text}", ["plain {text}"]),
        (b"", []),
    ],
)
@pytest.mark.parametrize("buffered", [True, False])
def test_standard_input_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list[str], buffered: bool
) -> None:
    raw = io.BytesIO(data)
    stream = io.BufferedReader(raw) if buffered else raw  # type: ignore[type-var]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    assert joined(read_documents([], ReadConfig())) == expected


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        read(tmp_path / "none.txt")
    with pytest.raises(DataError, match="not UTF-8 at byte 300001"):
        read(write(tmp_path / "a.txt", b"x" * 300_000 + b"\n\xe9t\xe9"))
    with pytest.raises(DataError, match="not UTF-8 at byte 3"):
        read(write(tmp_path / "a.txt", b"abc\xe2\x82"))  # ends inside a character
    with pytest.raises(DataError, match="UTF-16"):
        read(write(tmp_path / "a.txt", "abc".encode("utf-16")))
    with pytest.raises(DataError, match=r"a.jsonl:2"):
        read(write(tmp_path / "a.jsonl", '{"text":"a"}\n{"txt":"b"}\n'))
    lines, plain = write(tmp_path / "a.jsonl", '{"text":"a"}'), write(tmp_path / "b.txt", "b")
    skipping = ReadConfig(on_bad_line="skip", rejects=str(tmp_path / "rejects"))
    assert read(lines, lines, plain, reading=skipping) == ["a", "a", "b"]
    with pytest.raises(UsageError, match="one after another"):
        read(lines, plain, lines, reading=skipping)


PARAGRAPHS = st.lists(
    st.sampled_from(["a", "bb", "c d", " e", "\n", "\n\n", "\r\n", " \n", "\t", "é", "\n \n"]), max_size=40
).map("".join)


def by_hand(text: str) -> list[str]:
    """Paragraphs, line by line."""
    documents: list[str] = []
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip(" \t\r"):
            lines.append(line)
        elif lines:
            documents.append("\n".join(lines))
            lines = []
    return documents


@given(text=PARAGRAPHS, block=st.integers(1, 9))
def test_splitting_at_blank_lines(text: str, block: int) -> None:
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    got = joined(texts._parts(blocks, split=True))
    assert [d.rstrip("\r\n\t ") for d in got] == [d.rstrip("\r\n\t ") for d in by_hand(text)]


@given(text=PARAGRAPHS, block=st.integers(1, 9), split=st.booleans())
def test_parts_are_bounded_and_lose_nothing(text: str, block: int, split: bool) -> None:
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    with pytest.MonkeyPatch.context() as patch:
        whole = joined(texts._parts(blocks, split=split))
        patch.setattr(texts, "PART", 4)
        patch.setattr(texts, "LONGEST_PART", 16)
        parts = list(texts._parts(blocks, split=split))
        # Where blank lines go on for longer than a part, some may stay at the end of the document before.
        trim = "\r\n\t " if split else ""
        assert [d.rstrip(trim) for d in joined(parts)] == [d.rstrip(trim) for d in whole]
        assert all(len(part.text) <= 16 + 9 for part in parts)


def test_a_text_without_spaces_is_cut_all_the_same() -> None:
    parts = list(texts._parts(["x" * texts.PART] * 20))
    assert max(len(part.text) for part in parts) <= texts.LONGEST_PART
    assert sum(len(part.text) for part in parts) == 20 * texts.PART
