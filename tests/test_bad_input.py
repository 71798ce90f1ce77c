"""Bad input, row by row: what is refused, with which status, and what the one line of error says.

Real processes. The commands that need no torch (rank2pairs, score and rank with a program) take most rows;
a trainer lists up to ten bad records at once, so one start serves many.
"""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import write_jsonl

if TYPE_CHECKING:
    from tests.conftest import Tiny

TOP = Path(__file__).parents[1]
ANY = "import json, sys\nfor line in sys.stdin:\n    print(json.dumps({'score': 1}), flush=True)\n"
GOOD = '{"prompt": "p", "completions": ["a", "b"], "ranking": [[0], [1]]}'


class Done:
    """What a command left behind."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr.decode()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.split(b"\n") if line]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RLHFKIT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}


def run(*words: str | Path, cwd: Path, stdin: bytes | None = None, timeout: float = 280) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "rlhfkit", *map(str, words)],
        cwd=cwd,
        env=environment(),
        input=b"" if stdin is None else stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def trainer(*words: str | Path, cwd: Path) -> Done:
    """The same in a forked child, which need not import torch again: a second less a case."""
    streams = [cwd.parent / f"{cwd.name}.{name}" for name in ("stdout", "stderr")]
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment(), TOKENIZERS_PARALLELISM="false")
            for number, target in enumerate([os.devnull, *streams]):
                os.dup2(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r") for n in range(3))  # noqa: SIM115
            from rlhfkit.cli.main import main

            main(list(map(str, words)))
        finally:
            os._exit(99)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    stdout, stderr = (path.read_bytes() for path in streams)
    assert b"Traceback" not in stderr
    return Done(status, stdout, stderr)


def refused(done: Done, status: int, *errors: str) -> None:
    """The status, and one line of error for each pattern, at most ten, with nothing but hints beside them."""
    assert done.status == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("hint:", "  "))]
    assert len(lines) == len(errors), done.stderr
    for line, pattern in zip(lines, errors, strict=True):
        assert re.search(pattern, line), f"{line!r} is not {pattern!r}"


@pytest.fixture
def pairs_of(tmp_path: Path) -> Any:
    """Run rank2pairs over bytes in a file, to a file; a refusal must leave nothing there."""

    def call(content: bytes, *words: str, name: str = "in.jsonl") -> Done:
        (tmp_path / name).write_bytes(content)
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        done = run("rank2pairs", name, "-o", "out.jsonl", *words, cwd=tmp_path)
        assert done.stdout == b""
        out = tmp_path / "out.jsonl"
        assert out.exists() == (done.status == 0)
        assert not [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
        return Done(done.status, out.read_bytes() if out.exists() else b"", done.stderr.encode())

    return call


# -- rows 1 to 20: lines -----------------------------------------------------------------------------------

ACCEPTED = {
    "2 blank lines": (f"\n{GOOD}\n\n  \n{GOOD}\n\n\n", 2),
    "3 no line end at the end": (f"{GOOD}\n{GOOD}", 2),
    "4 CRLF": (f"{GOOD}\r\n{GOOD}\r\n", 2),
    "5 byte-order mark": (f"\ufeff{GOOD}\n", 1),
    "12 NUL in a text": (GOOD.replace('"a"', r'"a\u0000"'), 1),
    "13 a raw line separator": (GOOD.replace('"a"', '"a\u2028\u0085b"'), 1),
}


@pytest.mark.parametrize("row", ACCEPTED)
def test_accepted(pairs_of: Any, row: str) -> None:
    content, count = ACCEPTED[row]
    done = pairs_of(content.encode())
    assert done.status == 0, done.stderr
    assert len(done.records) == count
    assert done.stderr == ""
    wanted = json.loads(content.lstrip("\ufeff").strip().split("\n")[0])["completions"][0]
    assert {r["chosen"] for r in done.records} == {wanted}


def test_1_empty_input(tiny: Tiny, tmp_path: Path) -> None:
    for content in (b"", b"\n\n"):
        done = run("rank2pairs", cwd=tmp_path, stdin=content)
        assert (done.status, done.stdout) == (0, b"")
        assert "no records" in done.stderr
    refused(
        trainer("sft", "-m", tiny.base, "-o", "out", "-q", cwd=tmp_path),
        65,
        r"^rlhfkit sft: error: no records",
    )
    assert list(tmp_path.iterdir()) == []


LINES = {
    "5 byte-order mark inside": ("\ufeff" + GOOD, r"in.jsonl:2:1: error: byte-order mark"),
    "6 invalid UTF-8": (
        GOOD.encode().replace(b'"a"', b'"\xff"'),
        r"in.jsonl:2: error: not UTF-8.*byte offset 99",
    ),
    "7 NaN": (GOOD.replace("[[0], [1]]", "NaN"), r"in.jsonl:2:55: error: NaN is not finite"),
    "7 -Infinity": (
        GOOD.replace("[[0], [1]]", "-Infinity"),
        r"in.jsonl:2:55: error: -Infinity is not finite",
    ),
    "7 1e999": (
        GOOD.replace('"b"', '{"text": "b", "score": 1e999}'),
        r"in.jsonl:2\S*: error: .*1e999 is not finite",
    ),
    "8 duplicate key": (
        GOOD.replace('{"p', '{"prompt": "x", "p', 1),
        r'in.jsonl:2\S*: error: duplicate key "prompt"',
    ),
    "9 deep nesting": (f'{{"prompt": {"[" * 200_000}', r"in.jsonl:2\S*: error: nested deeper than 64 levels"),
    "9 closed deep nesting": (
        GOOD.replace("{", '{"x": ' + "[" * 70 + "]" * 70 + ", ", 1),
        r"in.jsonl:2\S*: error: nested deeper than 64",
    ),
    "10 long integer": (
        GOOD.replace("{", '{"n": ' + "9" * 10_000 + ", ", 1),
        r"in.jsonl:2\S*: error: an integer of 10,000 digits",
    ),
    "11 lone surrogate": (GOOD.replace('"a"', r'"\ud800"'), r"in.jsonl:2:\d+: error: .*surrogate"),
    "14 trailing comma": (GOOD[:-1] + ",}", r"in.jsonl:2:\d+: error: not JSON"),
    "14 single quotes": (GOOD.replace('"', "'"), r"in.jsonl:2:2: error: not JSON"),
    "14 two objects": (GOOD + " " + GOOD, r"in.jsonl:2:67: error: not JSON: more than one value"),
    "14 a string": ('"text"', r"in.jsonl:2:1: error: expected an object, got a string"),
    "14 a number": ("5", r"in.jsonl:2:1: error: expected an object, got an integer"),
    "14 a list": ("[1]", r"in.jsonl:2:1: error: expected an object, got a list"),
    "14 null": ("null", r"in.jsonl:2:1: error: expected an object, got null"),
    "15 long line": (
        GOOD.replace('"a"', '"' + "a" * 5000 + '"'),
        r"in.jsonl:2: error: line longer than 4,000 bytes",
    ),
    "16 float id": (
        GOOD.replace("{", '{"id": 9007199254740993.0, ', 1),
        r"in.jsonl:2: error: ranking.id: .*string or an integer",
    ),
    "18 cut short": (GOOD[:40], r"in.jsonl:2:\d+: error: not JSON"),
    "21 no prompt": (
        GOOD.replace("prompt", "question"),
        r"in.jsonl:2: error: ranking.prompt: missing \(has: completions, question, ranking\)",
    ),
    "21 null prompt": (
        GOOD.replace('"p"', "null"),
        r"in.jsonl:2: error: ranking.prompt: expected a string.*got null",
    ),
    "21 number prompt": (
        GOOD.replace('"p"', "5"),
        r"in.jsonl:2: error: ranking.prompt: expected a string.*got an integer",
    ),
    "25 one item": (
        GOOD.replace('["a", "b"]', '["a"]'),
        r"in.jsonl:2: error: ranking.completions: one completion",
    ),
    "25 named twice": (
        GOOD.replace("[[0], [1]]", "[[0], [0]]"),
        r"in.jsonl:2: error: ranking.ranking\[1\]: index 0 is named twice",
    ),
    "25 out of range": (
        GOOD.replace("[[0], [1]]", "[[0], [2]]"),
        r"in.jsonl:2: error: ranking.ranking\[1\]: index 2 is outside 0..1",
    ),
    "25 rank 0": (
        GOOD.replace('"ranking": [[0], [1]]', '"ranks": [0, 1]'),
        r"in.jsonl:2: error: ranking.ranks\[0\]: rank 0 is outside 1..2",
    ),
    "25 flat list": (
        GOOD.replace("[[0], [1]]", "[0, 1]"),
        r"in.jsonl:2: error: ranking.ranking: a flat list",
    ),
    "25 no text": (
        GOOD.replace('"a"', '{"score": 1}'),
        r"in.jsonl:2: error: ranking.completions\[0\].text: missing \(has: score\)",
    ),
    "25 sources disagree": (
        GOOD.replace('"ranking"', '"ranks": [2, 1], "ranking"'),
        r"in.jsonl:2: error: ranking.ranking: disagrees with ranks",
    ),
}


@pytest.mark.parametrize("row", LINES)
def test_refused(pairs_of: Any, row: str) -> None:
    line, pattern = LINES[row]
    bad = line.encode() if isinstance(line, str) else line
    content = GOOD.encode() + b"\n" + bad + b"\n" + GOOD.encode() + b"\n"
    limit = ("--max-line-bytes", "4000") if row.startswith("15") else ()
    refused(pairs_of(content, *limit), 65, "^" + pattern)


def test_skipping_drops_them_all_counts_them_and_keeps_why(pairs_of: Any, tmp_path: Path) -> None:
    bad = [
        line.encode() if isinstance(line, str) else line
        for row, (line, _) in LINES.items()
        if row[:2] != "15"
    ]
    content = b"\n".join([GOOD.encode(), *bad, GOOD.encode()])
    done = pairs_of(content, "--on-bad-line", "skip", "--rejects", "rejects.jsonl")
    assert done.status == 0
    assert [r["chosen"] for r in done.records] == ["a", "a"]
    assert f"skipped {len(bad)} bad records" in done.stderr
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [r["line"] for r in rejects] == list(range(2, len(bad) + 2))
    assert all(r["error"] and r["raw"] for r in rejects)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_6_utf16(pairs_of: Any, encoding: str) -> None:
    refused(pairs_of(GOOD.encode(encoding)), 65, r"^in.jsonl: error: UTF-16 text \(byte offset 0\)")


def test_12_control_characters_are_shown_escaped(pairs_of: Any) -> None:
    line = json.dumps({"prompt": [{"role": "\x1b[2J\0", "content": ""}], "completions": ["a", "b"]})
    done = pairs_of(line.encode())
    refused(done, 65, r"^in.jsonl:1: error: ranking.prompt\[0\].role: unknown role '")
    assert not {"\x1b", "\0"} & set(done.stderr)


def test_15_an_endless_line_needs_no_memory(tmp_path: Path) -> None:
    """A line of 400 MB against the default limit of 64 MiB, in 300 MB of address space."""
    pipe = (
        f"head -c 400000000 /dev/zero | tr '\\0' x |"
        f" (ulimit -v 300000; exec {shlex.quote(sys.executable)} -m rlhfkit rank2pairs -o out.jsonl)"
    )
    done = subprocess.run(
        ["bash", "-c", pipe], cwd=tmp_path, env=environment(), capture_output=True, check=False, timeout=120
    )
    refused(
        Done(done.returncode, done.stdout, done.stderr),
        65,
        r"^<stdin>:1: error: line longer than 67,108,864 bytes",
    )
    assert list(tmp_path.iterdir()) == []


def test_17_gzip_under_another_name(pairs_of: Any) -> None:
    data = gzip.compress(GOOD.encode())
    refused(pairs_of(data), 65, r"^in.jsonl: error: gzip data")
    assert "rename it to in.jsonl.gz" in pairs_of(data).stderr
    assert len(pairs_of(data, name="in.jsonl.gz").records) == 1
    refused(
        pairs_of(data[:-20], name="cut.jsonl.gz"),
        65,
        r"^cut.jsonl.gz: error: gzip data end too early",
    )


def test_19_standard_input_is_a_terminal_or_closed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlhfkit", "rank2pairs"]
    ours, theirs = pty.openpty()
    done = subprocess.run(
        command, stdin=theirs, capture_output=True, cwd=tmp_path, env=environment(), check=False
    )
    os.close(ours), os.close(theirs)
    assert done.returncode == 2
    assert b"rlhfkit rank2pairs" in done.stderr
    script = f"{shlex.quote(sys.executable)} -m rlhfkit rank2pairs <&-"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, cwd=tmp_path, env=environment(), check=False
    )
    refused(Done(done.returncode, done.stdout, done.stderr), 66, r"^<stdin>: error: standard input is closed")


def test_20_input_and_output_are_one_file_or_the_output_exists(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(GOOD)
    for force in ((), ("--force",)):
        done = run("rank2pairs", "in.jsonl", "-o", "in.jsonl", *force, cwd=tmp_path)
        refused(done, 73, r"^in.jsonl: error: is input and output at once")
    (tmp_path / "out.jsonl").write_text("old")
    refused(
        run("rank2pairs", "in.jsonl", "-o", "out.jsonl", cwd=tmp_path),
        73,
        r"^out.jsonl: error: exists already",
    )
    assert (path.read_text(), (tmp_path / "out.jsonl").read_text()) == (GOOD, "old")


# -- rows 21 to 31: records --------------------------------------------------------------------------------


def ten(*errors: str, name: str) -> list[str]:
    return [rf"^{name}:{number}: error: {error}" for number, error in enumerate(errors, 1)]


def test_21_to_23_demonstrations(tiny: Tiny, tmp_path: Path) -> None:
    def turns(*roles: str) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": "x"} for role in roles]}

    bad: list[tuple[dict[str, Any], str]] = [
        ({"completion": "c"}, r"demonstration.prompt: missing \(has: completion\)"),
        ({"prompt": "p"}, r"demonstration.completion: missing \(has: prompt\)"),
        ({"prompt": "p", "completion": 5}, r"demonstration.completion: expected .*, got an integer"),
        ({"prompt": "p", "completion": " \n\t"}, r"demonstration.completion: blank"),
        (turns("user", "bot"), r"demonstration.messages\[1\].role: unknown role 'bot'"),
        (turns("system", "assistant"), r"demonstration.messages: no user message"),
        (turns("assistant", "user"), r"demonstration.messages\[0\]: the first turn is the assistant's"),
        (turns("system", "system", "user"), r"demonstration.messages\[1\]: a system message after"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            r"demonstration.messages\[0\].content: expected a string",
        ),
        ({"messages": []}, r"demonstration.messages: an empty list"),
        ({"messages": [{"content": "x"}]}, r"demonstration.messages\[0\].role: missing"),
    ]
    write_jsonl(tmp_path / "demos.jsonl", [record for record, _ in bad])
    done = trainer("sft", "demos.jsonl", "-m", tiny.base, "-o", "out", cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("hint:")]
    assert done.status == 65
    assert lines[10:] == ["and 1 more"]
    for line, pattern in zip(lines, ten(*(p for _, p in bad[:10]), name="demos.jsonl"), strict=False):
        assert re.search(pattern, line), f"{line!r} is not {pattern!r}"
    assert "hint: rename fields with --map" in done.stderr
    assert not (tmp_path / "out").exists()


def test_22_and_24_an_empty_prompt_is_told_and_no_trained_token_is_bad_data(
    tiny: Tiny, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "long.jsonl", [{"prompt": "red " * 30, "completion": " x"}])
    command = ("sft", "long.jsonl", "-m", tiny.base, "-o", "out", "--max-seq-len", "8")
    refused(
        trainer(*command, cwd=tmp_path), 65, r"none of the 1 records has a token to train on within 8 tokens"
    )
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": ""}, {"prompt": "red ->"}])
    done = trainer(
        "ppo",
        "prompts.jsonl",
        "-m",
        tiny.sft,
        "-r",
        tiny.rm,
        "-o",
        "out",
        "--max-new-tokens",
        "4",
        "--dry-run",
        cwd=tmp_path,
    )
    assert done.status == 0, done.stderr
    assert "warning: 1 empty prompts" in done.stderr
    assert not (tmp_path / "out").exists()


def test_26_a_ranking_of_500(pairs_of: Any) -> None:
    """All 124,750 pairs unless --max-pairs says fewer; each number is told in the help, none is silent."""
    record = {
        "prompt": "p",
        "completions": [f"c{i}" for i in range(500)],
        "ranking": [[i] for i in range(500)],
    }
    content = json.dumps(record).encode()
    assert pairs_of(content).stdout.count(b"\n") == 124_750
    done = pairs_of(content, "--max-pairs", "64")
    assert len(done.records) == 64
    assert all(int(r["chosen"][1:]) < int(r["rejected"][1:]) for r in done.records)


def test_27_pairs_of_equal_texts(tiny: Tiny, tmp_path: Path) -> None:
    """Counted and dropped; more than one in a hundred is bad data."""
    good = [{"prompt": f"{n} ->", "chosen": " a", "rejected": " b"} for n in range(150)]
    equal = {"prompt": "p ->", "chosen": " same", "rejected": " same"}
    write_jsonl(tmp_path / "one.jsonl", [*good, equal])
    write_jsonl(tmp_path / "two.jsonl", [equal, *good, equal])
    command = ("-m", tiny.sft, "-o", "out", "--dry-run")
    done = trainer("train-rm", "one.jsonl", *command, cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["pairs"] == 150
    assert "1 of 151 records dropped: chosen and rejected are the same text" in done.stderr
    done = trainer("train-rm", "two.jsonl", *command, "-q", cwd=tmp_path)
    refused(done, 65, r"^two.jsonl:1: error: 2 of 152 pairs have the same text as chosen and rejected")
    done = trainer("train-rm", "two.jsonl", *command, "--on-bad-line", "skip", cwd=tmp_path)
    assert done.status == 0
    assert json.loads(done.stdout)["pairs"] == 150


def test_28_prompts_that_differ_and_answers_told_apart_by_length(tiny: Tiny, tmp_path: Path) -> None:
    talk = [[{"role": "user", "content": p}, {"role": "assistant", "content": "x"}] for p in "pq"]
    write_jsonl(
        tmp_path / "differ.jsonl",
        [{"chosen": talk[0], "rejected": talk[1]}, {"chosen": "a", "rejected": "b"}],
    )
    done = trainer("train-rm", "differ.jsonl", "-m", tiny.sft, "-o", "out", cwd=tmp_path)
    refused(
        done,
        65,
        *ten(*[r"pair.prompt: missing, and chosen and rejected share no beginning"] * 2, name="differ.jsonl"),
    )
    long = [{"prompt": f"{n} ->", "chosen": " a long answer", "rejected": " b"} for n in range(30)]
    write_jsonl(tmp_path / "long.jsonl", long)
    done = trainer("train-rm", "long.jsonl", "-m", tiny.sft, "-o", "out", "--dry-run", cwd=tmp_path)
    assert json.loads(done.stdout)["longer_wins"] == 1.0
    assert "the longer answer wins 100% of the pairs" in done.stderr
    assert not (tmp_path / "out").exists()


def test_29_one_id_for_two_prompts(tiny: Tiny, tmp_path: Path) -> None:
    records = [{"id": 7, "prompt": "red", "completion": "x"}, {"id": 7, "prompt": "blue", "completion": "y"}]
    write_jsonl(tmp_path / "two.jsonl", records)
    pattern = r"^two.jsonl:2: error: .*id 7 .*two.jsonl:1"
    done = trainer(
        "ppo", "two.jsonl", "-m", tiny.sft, "-r", tiny.rm, "-o", "out", "--max-new-tokens", "4", cwd=tmp_path
    )
    refused(done, 65, pattern)
    done = trainer("sft", "two.jsonl", "-m", tiny.base, "-o", "out", cwd=tmp_path)
    refused(done, 65, pattern)
    assert not (tmp_path / "out").exists()
    (tmp_path / "any.py").write_text(ANY)
    refused(run("eval-winrate", "two.jsonl", "--judge", "cmd:python any.py", cwd=tmp_path), 65, pattern)


SCORERS = {
    "one missing": (ANY.replace("print", "if line.count('b'): break\n    print"), r"id 4"),
    "one extra": (
        ANY.replace("print", "print('{\"score\": 0}')\n    print"),
        r"unasked \(after 2 answers\)",
    ),
    "not a number": (ANY.replace("'score': 1", "'score': 'x'"), r"id 3"),
    "not finite": (ANY.replace("'score': 1", "'score': float('nan')"), r"id 3"),
    "no JSON": (ANY.replace("json.dumps({'score': 1})", "'hello'"), r"id 3"),
    "crash": ("import sys; sys.exit('broken')", r"exit|status"),
}


@pytest.mark.parametrize("row", SCORERS)
def test_30_a_program_that_answers_badly(tmp_path: Path, row: str) -> None:
    """The contract calls this a failed run, status 1; the first completion without a score is named."""
    body, pattern = SCORERS[row]
    (tmp_path / "judge.py").write_text(body)
    write_jsonl(
        tmp_path / "in.jsonl",
        [{"id": 3, "prompt": "p", "completion": "a"}, {"id": 4, "prompt": "p", "completion": "b"}],
    )
    before = sorted(tmp_path.iterdir())
    done = run("score", "in.jsonl", "-r", "cmd:python judge.py", "-o", "out.jsonl", cwd=tmp_path)
    assert done.status == 1, done.stderr
    error = next(line for line in done.stderr.splitlines() if "error: " in line)
    assert "judge.py" in error
    assert re.search(pattern, error), error
    assert sorted(tmp_path.iterdir()) == before


# -- rows 57 to 61: checkpoints and models -----------------------------------------------------------------


@pytest.fixture
def stopped(tiny: Tiny, tmp_path: Path) -> Path:
    """An unfinished run of sft with checkpoints of its steps 2 and 4."""
    from rlhfkit import context
    from rlhfkit.errors import Interrupted
    from rlhfkit.stages import sft

    class Stopper(context.Reporter):
        def progress(self, title: str, total: int | None, unit: str) -> context.Progress:
            class Watch(context.Progress):
                def update(self, done: int, figures: object = None) -> None:
                    if done == 4:
                        context.request_stop(15)

            return Watch()

    config = sft.Config(model=str(tiny.base), output=str(tmp_path / "out"), steps=5, save_every=2, lr=1e-3)
    with context.surroundings(Stopper(), context.Invocation()), pytest.raises(Interrupted):
        sft.run([str(tiny.demos)], config)
    return tmp_path / "out"


def resume(tiny: Tiny, out: Path, *words: str, start: Callable[..., Done] = trainer) -> Done:
    settings = ("--steps", "5", "--save-every", "2", "--lr", "1e-3")
    return start("sft", tiny.demos, "-m", tiny.base, "-o", out, *settings, *words, cwd=out.parent)


def test_57_unfinished_checkpoints_are_passed_over(tiny: Tiny, stopped: Path) -> None:
    checkpoints = stopped / "checkpoints"
    assert {p.name for p in checkpoints.iterdir()} >= {"step-2", "step-4"}
    (checkpoints / "step-4" / "state.json").unlink()  # its marker
    shutil.copytree(checkpoints / "step-2", checkpoints / ".writing-step-5")
    done = resume(tiny, stopped, start=run)
    assert done.status == 0, done.stderr
    assert "ignoring an unfinished checkpoint: .writing-step-5" in done.stderr
    assert "ignoring an unfinished checkpoint: step-4" in done.stderr
    assert "from step 2" in done.stderr
    assert done.records[0]["steps"] == 5


def test_58_and_60_a_corrupt_checkpoint_or_one_of_another_format(tiny: Tiny, stopped: Path) -> None:
    state = stopped / "checkpoints" / "step-4" / "state.json"
    good = state.read_text()
    document = json.loads(good)
    state.write_text(json.dumps({**document, "format": 99, "rlhfkit": "9.1"}))
    refused(resume(tiny, stopped, "-q"), 65, r"step-4: error: made by rlhfkit 9.1 in checkpoint format 99")
    state.write_text(good)
    file = stopped / "checkpoints" / "step-4" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))
    done = resume(tiny, stopped, "-q")
    refused(done, 65, r"optimizer.safetensors: error: damaged: its SHA-256")
    (advice,) = [line for line in done.stderr.splitlines() if line.startswith("hint:")]
    assert "step-4 to continue from step-2" in advice
    shutil.rmtree(stopped / "checkpoints" / "step-4")
    assert resume(tiny, stopped, start=run).status == 0


def test_59_an_unfinished_run_of_another_command_or_data(tiny: Tiny, stopped: Path) -> None:
    words = ("--steps", "5", "--save-every", "2", "--lr", "1e-3", "-q")
    done = trainer("train-rm", tiny.rankings, "-m", tiny.sft, "-o", stopped, *words, cwd=stopped.parent)
    refused(done, 73, r"out: error: holds an unfinished run of sft")
    few = write_jsonl(stopped.parent / "few.jsonl", [{"prompt": "a", "completion": " b"}])
    done = trainer("sft", few, "-m", tiny.base, "-o", stopped, *words, cwd=stopped.parent)
    refused(done, 65, r"out: error: the data changed since this run was started")


def test_60_a_reward_model_is_no_policy_and_a_policy_no_judge(tiny: Tiny, tmp_path: Path) -> None:
    done = trainer("sft", tiny.demos, "-m", tiny.rm, "-o", "out", cwd=tmp_path)
    refused(
        done, 65, r"rm: error: a reward model \(LlamaForSequenceClassification\); a language model is needed"
    )
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "a"}])
    done = trainer("score", "in.jsonl", "-r", tiny.sft, "-o", "out", cwd=tmp_path)
    refused(done, 65, r"sft: error: .*language model")
    assert "lm:" in done.stderr
    assert not (tmp_path / "out").exists()


def test_61_weights_in_formats_that_can_run_code(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.sft, tmp_path / "pickled")
    (tmp_path / "pickled" / "run.json").unlink()
    weights = tmp_path / "pickled" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    done = trainer("sft", tiny.demos, "-m", "pickled", "-o", "out", cwd=tmp_path)
    refused(done, 65, r"^pickled: error: weights only as pytorch_model.bin")
    assert "hint: convert it" in done.stderr
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    done = trainer("sft", tiny.demos, "-m", "model.gguf", "-o", "out", cwd=tmp_path)
    refused(done, 65, r"^model.gguf: error: .*safetensors")
    assert "hint: convert it" in done.stderr


# -- rows 62 to 64: outputs and settings -------------------------------------------------------------------


def test_62_no_room_or_no_right_to_write(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    refused(
        run("rank2pairs", "in.jsonl", "-o", "/proc/out.jsonl", cwd=tmp_path), 73, r"^/proc/out.jsonl: error: "
    )
    refused(
        run("rank2pairs", "in.jsonl", "-o", "no/out.jsonl", cwd=tmp_path),
        73,
        r"^no: error: no such directory",
    )
    refused(
        run("rank2pairs", "in.jsonl", "-o", "/dev/full", cwd=tmp_path),
        74,
        r"^/dev/full: error: cannot write: no space",
    )
    refused(run("rank2pairs", "no.jsonl", cwd=tmp_path), 66, r"^no.jsonl: error: no such file")
    refused(run("rank2pairs", ".", cwd=tmp_path), 66, r"^\.: error: is a directory")
    done = trainer("sft", tiny.demos, "-m", tiny.base, "-o", "/proc/out", "-q", cwd=tmp_path)
    refused(done, 73, r"^/proc/out: error: ")


SETTINGS: dict[str, tuple[Sequence[str], str]] = {
    "lr nan": (("sft", "-m", "m", "-o", "o", "--lr", "nan"), r"--lr: .*nan"),
    "lr negative": (("sft", "-m", "m", "-o", "o", "--lr", "-1"), r"--lr: .*-1.*at least 0"),
    "batch 0": (("sft", "-m", "m", "-o", "o", "--batch-size", "0"), r"--batch-size: .*0.*at least 1"),
    "seed -1": (
        ("sft", "-m", "m", "-o", "o", "--seed", "-1"),
        r"--seed: .*-1.*at least 0|--seed: .*-1.*from 0",
    ),
    "top-p 2": (("sample", "-m", "m", "--top-p", "2"), r"--top-p: .*2"),
    "top-p 0": (("sample", "-m", "m", "--top-p", "0"), r"--top-p: .*0"),
    "max new 0": (
        ("ppo", "-m", "m", "-r", "r", "-o", "o", "--max-new-tokens", "0"),
        r"--max-new-tokens: .*0.*at least 1",
    ),
    "unknown flag": (
        ("sft", "-m", "m", "-o", "o", "--leraning-rate", "1"),
        r"no such option: --leraning-rate",
    ),
    "unknown choice": (("sft", "-m", "m", "-o", "o", "--dtype", "float64"), r"--dtype: .*float64.*float32"),
    "not a number": (("rank2pairs", "--max-pairs", "many"), r"--max-pairs: .*many"),
    "rejects alone": (("rank2pairs", "--rejects", "r.jsonl"), r"--rejects"),
    "bad map": (("rank2pairs", "--map", "a"), r"--map: .*NEW=OLD"),
    "no model": (("sft", "-o", "o"), r"--model is required"),
    "unknown command": (("stf",), r"no such command: stf"),
}


@pytest.mark.parametrize("row", SETTINGS)
def test_63_settings(tmp_path: Path, row: str) -> None:
    words, pattern = SETTINGS[row]
    refused(
        run(*words, cwd=tmp_path),
        2,
        rf"^rlhfkit( \S+)?: error: .*{pattern}|^rlhfkit( \S+)?: error: {pattern}",
    )
    assert list(tmp_path.iterdir()) == []


def test_64_no_room_for_an_answer_and_no_end_token(tiny: Tiny, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "red " * 100, "completion": " x"}])
    done = trainer(
        "ppo", "in.jsonl", "-m", tiny.sft, "-r", tiny.rm, "-o", "out", "--max-new-tokens", "8", cwd=tmp_path
    )
    refused(done, 65, r"none of the 1 prompts fits 56 tokens")
    done = trainer("sample", "in.jsonl", "-m", tiny.sft, "--max-new-tokens", "8", "-o", "out", cwd=tmp_path)
    refused(done, 65, r"^in.jsonl:1: error: .*token")
    done = trainer("score", "in.jsonl", "-r", tiny.rm, "-o", "out", cwd=tmp_path)
    refused(done, 65, r"error: .*id 0.*tokens")
    shutil.copytree(tiny.sft, tmp_path / "endless")
    (tmp_path / "endless" / "run.json").unlink()
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = tmp_path / "endless" / name
        document = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in document.items() if not k.startswith("eos_token")}))
    done = trainer("sft", tiny.demos, "-m", "endless", "-o", "out", cwd=tmp_path)
    refused(done, 65, r"^endless/tokenizer_config.json: error: has no end-of-text token")
    assert not (tmp_path / "out").exists()
