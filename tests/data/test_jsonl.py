"""Streams of rows: line ends, limits, compression, latency, bad lines, and what is written out."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhfkit import context
from rlhfkit.config import ReadConfig
from rlhfkit.data import sources
from rlhfkit.data.jsonl import Reader, Row, encode, encode_lines, read_rows
from rlhfkit.errors import BadRecords, CannotCreate, DataError, InputMissing, UsageError
from rlhfkit.stages import sft


class Notes(context.Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    warn = note


@contextmanager
def notes() -> Iterator[list[str]]:
    reporter = Notes()
    with context.surroundings(reporter, context.Invocation()):
        yield reporter.said


def rows(data: bytes, tmp_path: Path, name: str = "x.jsonl", **settings: Any) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(data)
    return list(read_rows([path], ReadConfig(**settings)))


def values(data: bytes, tmp_path: Path, **settings: Any) -> list[dict[str, Any]]:
    return [row.values for row in rows(data, tmp_path, **settings)]


def problem(data: bytes, tmp_path: Path, name: str = "x.jsonl", **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        rows(data, tmp_path, name, **settings)
    return caught.value


# -- line ends and encodings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n{"a": 2}',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n',
        b'\n\n{"a": 1}\n  \t\r\n{"a": 2}\n\n \n',
        b'  {"a":1}  \n\t{"a"\t: 2 }\n',
    ],
)
def test_line_ends_byte_order_mark_and_blank_lines(data: bytes, tmp_path: Path):
    assert values(data, tmp_path) == [{"a": 1}, {"a": 2}]


def test_only_lf_ends_a_line(tmp_path: Path):
    data = json.dumps({"a": "one\u2028two\u0085three\x0bfour"}, ensure_ascii=False).replace(
        "\\u000b", "\u000c"
    )
    data = data.replace("\u000c", "\\u000c") + "\n"
    assert values(data.encode(), tmp_path) == [{"a": "one\u2028two\u0085three\x0cfour"}]


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path):
    found = rows(b'\n{"a": 1}\r\n\r\n{"a": 2}', tmp_path)
    assert [(row.line, row.where) for row in found] == [
        (2, f"{tmp_path}/x.jsonl:2"),
        (4, f"{tmp_path}/x.jsonl:4"),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_rows_do_not_depend_on_how_a_pipe_cuts_them(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\n{"a": "long enough to be cut"}\n{"b": [1, {"c": null}]}\n{"a": 4}'
    monkeypatch.setattr(sources, "READ_BYTES", size)
    found = rows(data, tmp_path)
    assert [row.values for row in found] == [
        {"a": "é"},
        {"a": "long enough to be cut"},
        {"b": [1, {"c": None}]},
        {"a": 4},
    ]
    assert [row.line for row in found] == [1, 3, 4, 5]


def test_utf16_and_invalid_utf8(tmp_path: Path):
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        assert "UTF-16" in str(problem('{"a": 1}\n'.encode(encoding), tmp_path))
    data = b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\n{"a": "\xff"}\n'
    error = problem(data, tmp_path)
    assert error.where == f"{tmp_path}/x.jsonl:3"
    assert f"byte offset {data.index(0xFF)}" in error.message


def test_a_byte_order_mark_further_in_is_bad(tmp_path: Path):
    error = problem(b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n', tmp_path)
    assert (error.where, error.message) == (f"{tmp_path}/x.jsonl:2:1", "byte-order mark inside the input")


def test_nothing_and_next_to_nothing(tmp_path: Path):
    for data in (b"", b"\n\n", b"\xef\xbb\xbf"):
        with notes() as said:
            assert rows(data, tmp_path) == []
        assert said == ["no records in the input"]


# -- limits -------------------------------------------------------------------------------------------------


def test_a_long_line_is_refused_and_read_past(tmp_path: Path):
    long = b'{"a": "' + b"x" * 300_000 + b'"}\n'
    data = b'{"a": 1}\n' + long + b'{"a": 2}\n' + long[:-1]
    error = problem(data, tmp_path, max_line_bytes=100_000)
    assert (error.where, error.message) == (f"{tmp_path}/x.jsonl:2", "line longer than 100,000 bytes")
    with notes():
        found = rows(data, tmp_path, max_line_bytes=100_000, on_bad_line="skip")
    assert [(row.line, row.values["a"]) for row in found] == [(1, 1), (3, 2)]


def test_a_line_that_never_ends_takes_constant_memory_and_is_refused_at_once():
    code = """
import sys
from rlhfkit.config import ReadConfig
from rlhfkit.data.jsonl import read_rows
from rlhfkit.errors import DataError
def peak():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
try:
    list(read_rows(["-"], ReadConfig(max_line_bytes=2**20)))
except DataError as error:
    print(error, peak() - before)
"""
    endless = subprocess.Popen(["yes", "x"], stdout=subprocess.PIPE)
    joined = subprocess.Popen(["tr", "-d", "\n"], stdin=endless.stdout, stdout=subprocess.PIPE)
    result = subprocess.run(
        [sys.executable, "-c", code], stdin=joined.stdout, capture_output=True, text=True, timeout=60
    )
    for process in (joined, endless):
        process.kill()
        process.wait()
    message, _, grown = result.stdout.rpartition(" ")
    assert message == "<stdin>:1: line longer than 1,048,576 bytes"
    assert int(grown) < 20


def test_limit_counts_records_over_all_inputs(tmp_path: Path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(b'{"n": 1}\n\n{"n": 2}\nnot read\n' if path == paths[1] else b'{"n": 1}\n{"n": 2}\n')
    reader = read_rows(paths, ReadConfig(limit=4))
    assert [row.line for row in reader] == [1, 2, 1, 3]
    assert reader.count == 4
    assert list(read_rows(paths, ReadConfig(limit=0))) == []
    assert [len(b) for b in read_rows(paths, ReadConfig(limit=3)).batches(2)] == [2, 1]


# -- compression --------------------------------------------------------------------------------------------


def test_gzip_by_name(tmp_path: Path):
    data = b'{"a": 1}\n{"a": 2}\n'
    several = gzip.compress(data[:5]) + gzip.compress(data[5:]) + b"\0" * 512
    for packed in (gzip.compress(data), several):
        assert [row.values for row in rows(packed, tmp_path, "x.jsonl.gz")] == [{"a": 1}, {"a": 2}]
    assert rows(gzip.compress(b""), tmp_path, "x.jsonl.gz") == []


def test_gzip_under_another_name_and_what_only_has_the_name(tmp_path: Path):
    packed = gzip.compress(b'{"a": 1}\n')
    error = problem(packed, tmp_path)
    assert "gzip data" in error.message
    assert error.hint == f"rename it to {tmp_path}/x.jsonl.gz"
    assert "bad gzip data" in str(problem(b'{"a": 1}\n', tmp_path, "x.jsonl.gz"))
    assert "cut short" in str(problem(packed[:-9], tmp_path, "x.jsonl.gz"))
    assert "bad gzip data" in str(problem(packed + b"junk", tmp_path, "x.jsonl.gz"))


def test_a_bomb_is_refused_early(tmp_path: Path):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(b" " * (2**20 - 1) + b"\n")
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match="grow more than 200 times"):
        list(read_rows([path], ReadConfig()))


def test_records_that_compress_well_are_no_bomb(tmp_path: Path):
    data = b'{"a": "the same every time"}\n' * 100_000
    assert len(gzip.compress(data)) * 200 < len(data)
    assert len(rows(gzip.compress(data), tmp_path, "x.jsonl.gz")) == 100_000


# -- missing inputs ----------------------------------------------------------------------------------------


def test_missing_inputs_are_found_before_anything_is_read(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    for name, message in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(InputMissing, match=message) as caught:
            read_rows([tmp_path / "a.jsonl", name], ReadConfig())
        assert caught.value.where == str(name)


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputMissing, match="standard input is closed"):
        read_rows(["-"], ReadConfig())


def test_standard_input_is_called_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"a": 1}\n[]\n')))
    with pytest.raises(DataError) as caught:
        list(read_rows(["-"], ReadConfig()))
    assert caught.value.where == "<stdin>:2:1"


# -- batches and latency -----------------------------------------------------------------------------------


def test_a_fifo_streams_as_it_is_written(tmp_path: Path):
    path = tmp_path / "fifo.jsonl"
    os.mkfifo(path)
    go_on = threading.Event()

    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(b'{"n": 1}\n{"n": 2}\n{"n":')
            assert go_on.wait(20)
            file.write(b" 3}\n")

    writer = threading.Thread(target=write)
    writer.start()
    batches = read_rows([path], ReadConfig()).batches()
    assert [row.values["n"] for row in next(batches)] == [1, 2]
    go_on.set()
    assert [row.values["n"] for row in next(batches)] == [3]
    assert list(batches) == []
    writer.join()


def test_batches_of_a_size(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(10)))
    sizes = [len(batch) for batch in read_rows([path], ReadConfig()).batches(4)]
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("size", [None, 1, 2, 5])
def test_good_records_before_a_bad_one_come_out_first(size: int | None, tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n": 3}\nbad\n{"n": 5}\n')
    reader = read_rows([path], ReadConfig())
    found: list[int] = []
    with pytest.raises(DataError) as caught:
        found.extend(row.values["n"] for batch in reader.batches(size) for row in batch)
    assert found == [1, 2, 3]
    assert caught.value.where == f"{path}:4:1"


# -- bad lines ---------------------------------------------------------------------------------------------


def test_skipping_counts_and_keeps_the_rejects(tmp_path: Path):
    path, rejects = tmp_path / "x.jsonl", tmp_path / "rejects.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": \xff}\n{"n": 2, "n": 3}\n{"n": 4}\n{"n": ')
    reader = read_rows([path], ReadConfig(on_bad_line="skip", rejects=str(rejects)))
    with notes() as said:
        assert [row.values["n"] for row in reader] == [1, 4]
    assert reader.bad == 3
    assert said == [
        f"skipped 3 bad records, kept in {rejects}; the first: {path}:2: not UTF-8 at byte offset 15"
    ]
    kept = [json.loads(line) for line in rejects.read_text(encoding="utf-8").splitlines()]
    assert [(r["source"], r["line"], r["raw"]) for r in kept] == [
        (str(path), 2, '{"n": \\xff}'),
        (str(path), 3, '{"n": 2, "n": 3}'),
        (str(path), 5, '{"n": '),
    ]
    assert "duplicate key" in kept[1]["error"]


def test_rejects_appear_whole_or_not_at_all(tmp_path: Path):
    path, rejects = tmp_path / "x.jsonl", tmp_path / "rejects.jsonl"
    path.write_bytes(b"bad\n" + b'{"n": 1}\n' * 20_000)
    settings = ReadConfig(on_bad_line="skip", rejects=str(rejects))
    batches = read_rows([path], settings).batches()
    next(batches)
    assert not rejects.exists()
    batches.close()  # the consumer gave up
    assert list(tmp_path.iterdir()) == [path]
    assert len(list(read_rows([path], settings))) == 20_000
    with pytest.raises(CannotCreate, match="exists already"):
        list(read_rows([path], settings))
    # A trainer that is started again to continue must not stumble over its own rejects.
    resumed = sft.Config(model="m", output=str(tmp_path / "run"), on_bad_line="skip", rejects=str(rejects))
    assert len(list(read_rows([path], resumed))) == 20_000


def test_rejects_need_skip_and_a_name_of_their_own(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="needs --on-bad-line skip"):
        read_rows([path], ReadConfig(rejects="r"))
    with pytest.raises(UsageError, match="is an input"):
        read_rows([path], ReadConfig(on_bad_line="skip", rejects=str(path)))


def test_read_all_tells_of_ten_bad_records_and_how_many_more(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n' + b"bad\n" * 12)
    with pytest.raises(BadRecords) as caught:
        read_rows([path], ReadConfig()).read_all()
    assert [error.where for error in caught.value.errors] == [f"{path}:{n}:1" for n in range(2, 12)]
    assert caught.value.more == 2
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no records"):
        read_rows([path], ReadConfig()).read_all()


def test_an_error_of_the_converter_is_a_bad_record(tmp_path: Path):
    def convert(row: Row) -> int:
        if "n" not in row.fields:
            raise DataError("no n", where=row.where)
        return int(row.value("n"))

    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n{"m": 2}\n{"n": 3}\n')
    assert list(Reader([path], ReadConfig(on_bad_line="skip"), convert)) == [1, 3]


# -- renaming ----------------------------------------------------------------------------------------------


def test_map(tmp_path: Path):
    data = b'{"q": "Q", "a": {"b": [1.50, {"c.d": "deep"}]}, "x.y": true, "n": null}\n'
    settings = ("prompt=q", "first=a.b.0", "deep=a.b.1", "xy=x.y", "n2=n", "no=a.b.9", "no=a.c", "no=q.r")
    with notes() as said:
        (row,) = rows(data, tmp_path, map=settings)
    assert row.values == {
        "prompt": "Q", "a": {"b": [1.5, {"c.d": "deep"}]}, "first": 1.5, "deep": {"c.d": "deep"}, "xy": True, "n2": None,
    }  # fmt: skip
    assert bytes(row.fields["first"]) == b"1.50"
    assert sorted(said) == [f"no record has what --map no={path} names" for path in ("a.b.9", "a.c", "q.r")]


@pytest.mark.parametrize("setting", ["prompt", "=q", "prompt=", ""])
def test_a_malformed_map_is_a_usage_error(setting: str):
    with pytest.raises(UsageError, match="is not NEW=OLD"):
        read_rows([], ReadConfig(map=(setting,)))


# -- records of a Python caller ----------------------------------------------------------------------------


def test_a_python_caller_may_give_records():
    records = [{"a": "é", "n": 1}, {"a": None}]
    for given in (records, iter(records), tuple(records)):
        assert [row.values for row in read_rows(given, ReadConfig())] == records
    assert list(read_rows([], ReadConfig())) == []


def test_records_from_a_generator_are_not_held_back():
    def produce() -> Iterator[dict[str, object]]:
        yield {"n": 1}
        raise AssertionError("asked too early")

    assert next(read_rows(produce(), ReadConfig()).batches())[0].values == {"n": 1}


@pytest.mark.parametrize(
    ("record", "message"),
    [({"x": float("nan")}, "not finite"), ({"x": {1, object()}}, "type object"), (5, "mapping")],
)
def test_records_that_are_not_json(record: Any, message: str):
    reader = iter(read_rows([{"a": 1}, record], ReadConfig()))
    assert next(reader).values == {"a": 1}
    with pytest.raises(DataError, match=message) as caught:
        next(reader)
    assert caught.value.where == "<records>:2"


# -- writing -----------------------------------------------------------------------------------------------


def test_encoding_is_compact_utf8_and_keeps_raw_json():
    row = next(iter(read_rows([{"a": 1}], ReadConfig())))
    row.replace("raw", type(row.fields["a"])(b"1.50"))
    assert (
        encode({"t": "é\u2028😀\x00", "n": 1.0, **row.fields})
        == '{"t":"é\u2028😀\\u0000","n":1.0,"a":1,"raw":1.50}'.encode()
    )
    assert encode_lines([{"a": 1}, {"a": [True, None]}]) == b'{"a":1}\n{"a":[true,null]}\n'
    assert encode_lines([]) == b""


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), [float("-inf")], {"b": [{"c": float("nan")}]}, (float("nan"),)]
)
def test_what_is_not_finite_is_never_written(bad: object):
    for write in (lambda: encode({"a": bad}), lambda: encode_lines([{"a": 1}, {"a": bad}])):
        with pytest.raises(ValueError, match="not finite"):
            write()


def test_memory_stays_constant(tmp_path: Path):
    code = """
import sys
from rlhfkit.config import ReadConfig
from rlhfkit.data.jsonl import read_rows
for _ in read_rows([sys.argv[1]], ReadConfig()):
    pass
print(*(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    peaks = []
    for count in (1_000, 60_000):
        path = tmp_path / f"{count}.jsonl"
        line = json.dumps({"prompt": "p" * 500, "completions": ["x" * 200, "y" * 200]}).encode() + b"\n"
        path.write_bytes(line * count)
        result = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        peaks.append(int(result.stdout))
    assert peaks[1] - peaks[0] < 8
    assert peaks[1] < 60
