"""`score`: scores land beside their completions and nothing else changes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfkit.data.jsonl import encode
from rlhfkit.errors import DataError, InputMissing, RlhfkitError
from rlhfkit.stages import score
from rlhfkit.stages.score import Config

GOLD = """
import json, sys
for line in sys.stdin:
    record = json.loads(line)
    text = record["completion"]
    print(json.dumps({"score": len(text if isinstance(text, str) else text[-1]["content"])}))
"""


@pytest.fixture
def gold(tmp_path: Path) -> str:
    (tmp_path / "gold.py").write_text(GOLD)
    return f"cmd:{shlex.quote(sys.executable)} {tmp_path / 'gold.py'}"


def scored(records: list[dict[str, object]], gold: str, **settings: object) -> list[dict[str, object]]:
    batches = score.run(records, Config(reward=gold, **settings))  # type: ignore[arg-type]
    return [json.loads(encode(record)) for batch in batches for record in batch]


RECORDS = [
    {"id": "a", "prompt": "p", "completion": "four", "extra": {"deep": [1, 2.50]}},
    {"prompt": "p", "completions": ["x", {"text": "yy", "finish_reason": "stop", "logprob": -1.25}]},
    {
        "prompt": [{"role": "user", "content": "hi"}],
        "completions": [[{"role": "assistant", "content": "hello"}]],
    },
    {"prompt": "p", "completion": "é😀", "score": 99, "n": 10000000000000000000},
]


def test_scores_stand_beside_their_completions(gold: str):
    assert scored(RECORDS, gold) == [
        {"id": "a", "prompt": "p", "completion": "four", "extra": {"deep": [1, 2.50]}, "score": 4.0},
        {
            "prompt": "p",
            "completions": [
                {"text": "x", "score": 1.0},
                {"text": "yy", "finish_reason": "stop", "logprob": -1.25, "score": 2.0},
            ],
        },
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "completions": [{"messages": [{"role": "assistant", "content": "hello"}], "score": 5.0}],
        },
        {"prompt": "p", "completion": "é😀", "score": 2.0, "n": 10000000000000000000},
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_batches_change_nothing(gold: str, batch_size: int):
    records = [{"prompt": "p", "completions": ["c" * n, "d" * (n % 7)]} for n in range(25)]
    batches = list(score.run(records, Config(reward=gold, batch_size=batch_size)))
    assert max(map(len, batches)) == min(batch_size, 25)
    assert scored(records, gold, batch_size=batch_size) == scored(records, gold)


def test_the_program_sees_the_records_id_or_its_number(tmp_path: Path):
    echo = "import json, sys\nfor line in sys.stdin: print(json.dumps({'score': json.loads(line)['id']}))"
    (tmp_path / "echo.py").write_text(echo)
    records = [
        {"prompt": "p", "completions": ["a", "b"]},
        {"id": 70, "prompt": "p", "completion": "a"},
        {"prompt": "p", "completion": "c"},
    ]
    out = scored(records, f"cmd:{shlex.quote(sys.executable)} {tmp_path / 'echo.py'}", batch_size=2)
    assert [c["score"] for c in out[0]["completions"]] == [0.0, 0.0]  # type: ignore[attr-defined]
    assert [record["score"] for record in out[1:]] == [70.0, 2.0]


def test_a_bad_record_stops_after_the_good_ones_before_it(gold: str, tmp_path: Path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": "p", "completion": 5}\n')
    batches = score.run([str(path)], Config(reward=gold))
    assert len(next(batches)) == 1
    with pytest.raises(DataError, match=r"in\.jsonl:2: sample\.completion"):
        next(batches)
    skipping = Config(reward=gold, on_bad_line="skip")
    assert [len(batch) for batch in score.run([str(path)], skipping)] == [1]


def test_a_missing_input_is_told_before_the_scorer_starts():
    with pytest.raises(InputMissing):
        next(score.run(["/nonexistent.jsonl"], Config(reward="cmd:false")))


def test_a_failing_scorer_ends_the_run(tmp_path: Path):
    with pytest.raises(RlhfkitError, match="exit status 1"):
        scored(RECORDS[:1], "cmd:false")


def test_extra_answers_at_the_end_end_the_run(tmp_path: Path):
    (tmp_path / "extra.py").write_text(GOLD + "print('{\"score\": 1}')\n")
    with pytest.raises(RlhfkitError, match="unasked"):
        scored(RECORDS, f"cmd:{shlex.quote(sys.executable)} {tmp_path / 'extra.py'}")


def test_no_records_is_no_output(gold: str):
    assert scored([], gold) == []


def command(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "rlhfkit", "score", *arguments],
        input=stdin,
        capture_output=True,
        env=environment,
        check=False,
    )


def test_from_the_command_line(gold: str, tmp_path: Path):
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
    done = command("-q", "-r", gold, stdin=lines)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line) for line in done.stdout.splitlines()] == scored(RECORDS, gold)
    assert b"score: 4 records" in command("-r", gold, stdin=lines).stderr
    out = tmp_path / "out.jsonl"
    failed = command("-r", "cmd:sh -c 'echo some trouble >&2; exit 9'", "-o", str(out), stdin=lines)
    assert failed.returncode == 1
    assert not out.exists()
    assert b"exit status 9" in failed.stderr
    assert b"some trouble" in failed.stderr
    assert b"Traceback" not in failed.stderr


def test_a_reader_that_goes_away_is_no_failure(gold: str):
    arguments = [sys.executable, "-m", "rlhfkit", "score", "-r", gold, "--batch-size", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(arguments, **pipes)  # type: ignore[call-overload]
    process.stdin.write(b'{"prompt": "p", "completion": "c"}\n')
    process.stdin.flush()
    assert process.stdout.readline() == b'{"prompt":"p","completion":"c","score":1.0}\n'  # at once
    process.stdout.close()
    process.stdin.write(b'{"prompt": "p", "completion": "c"}\n' * 2)
    process.stdin.close()
    assert (process.wait(20), process.stderr.read()) == (141, b"")
    process.stderr.close()
