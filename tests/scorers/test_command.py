"""cmd: scorers against real programs that behave, crash, hang, babble and fork."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from rlhfkit.context import Invocation, Reporter, surroundings
from rlhfkit.errors import RlhfkitError, UsageError
from rlhfkit.scorers import Scorable, ScorerConfig, group_scores, open_scorer
from rlhfkit.scorers.command import KEPT_STDERR_LINES, CommandScorer

HEAD = "import json, os, sys, time\n"
LENGTH = """
for line in sys.stdin:
    print(json.dumps({"score": len(json.loads(line)["completion"])}))
"""


class Chat(msgspec.Struct, frozen=True):
    role: str
    content: str


def program(tmp_path: Path, body: str) -> str:
    path = tmp_path / "gold scorer.py"  # with a space: arguments are quoted
    path.write_text(HEAD + textwrap.dedent(body))
    return f"{shlex.quote(sys.executable)} '{path}'"


def items(*completions: str) -> list[Scorable]:
    return [Scorable(n, "prompt", text) for n, text in enumerate(completions)]


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_scores_in_order_over_several_batches(tmp_path: Path):
    with open_scorer("cmd:" + program(tmp_path, LENGTH)) as scorer:
        assert scorer.score(items("abc", "", "z")) == [3.0, 0.0, 1.0]
        assert scorer.score([]) == []
        assert scorer.score(items("é€😀")) == [3.0]


def test_the_program_sees_id_prompt_and_completion_also_as_messages(tmp_path: Path):
    seen = tmp_path / "seen"
    body = f"""
    with open({str(seen)!r}, "w") as file:
        for line in sys.stdin:
            file.write(line)
            print('{{"score": -1.5e-3, "comment": "fields of its own are fine"}}')
    """
    with CommandScorer(program(tmp_path, body)) as scorer:
        chat = [Chat("user", "hi")]
        assert (
            scorer.score([Scorable("x-1", "p", "c"), Scorable(2, chat, [Chat("assistant", "yo")])])
            == [-0.0015] * 2
        )
    assert [msgspec.json.decode(line) for line in seen.read_bytes().splitlines()] == [
        {"id": "x-1", "prompt": "p", "completion": "c"},
        {
            "id": 2,
            "prompt": [{"role": "user", "content": "hi"}],
            "completion": [{"role": "assistant", "content": "yo"}],
        },
    ]


@pytest.mark.parametrize(
    "body",
    [
        LENGTH,  # answers at once
        """
        pending = []
        for line in sys.stdin:
            pending.append(json.loads(line))
            if len(pending) == 500:
                print("".join(json.dumps({"score": len(r["completion"]), "id": r["id"]}) + "\\n" for r in pending), end="")
                pending = []
        """,  # batches of its own
        'for line in sys.stdin:\n    print("x" * 2000, file=sys.stderr)\n    print(json.dumps({"score": 4000}))',
        'for line in sys.stdin:\n    print(json.dumps({"score": 4000, "why": "w" * 9000}))',
    ],
)
def test_large_batches_do_not_deadlock_on_full_pipes(tmp_path: Path, body: str):
    with CommandScorer(program(tmp_path, body), timeout=20) as scorer:  # 4 MB in, up to 9 MB out
        assert scorer.score(items(*["c" * 4000] * 1000)) == [4000.0] * 1000


def test_a_crash_names_command_status_and_last_words(tmp_path: Path):
    body = """
    for n, line in enumerate(sys.stdin):
        if n == 2:
            for k in range(100):
                print(f"trouble {k}", file=sys.stderr)
            sys.exit(7)
        print('{"score": 1}')
    """
    command = program(tmp_path, body)
    with pytest.raises(RlhfkitError) as caught, CommandScorer(command) as scorer:
        scorer.score(items("a", "b", "c"))
    message = f"scorer command `{command}` ended with exit status 7 while id 2 waited for its score (after 2 answers)"
    assert str(caught.value) == message
    assert caught.value.__notes__ == [f"stderr: trouble {k}" for k in range(100 - KEPT_STDERR_LINES, 100)]
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("score: 1", "JSON is malformed"),
        ("0.5", "Expected `object`"),
        ('{"reward": 1}', "missing required field `score`"),
        ('{"score": "1"}', "Expected `float`"),
        ('{"score": null}', "Expected `float`"),
        ('{"score": true}', "Expected `float`"),
        ('{"score": NaN}', "JSON is malformed"),
        ('{"score": 1e999}', ""),
        ('{"score": 1, "id": 5}', "another id"),
        ("", "truncated"),
        ('{"score": 1}\\n{"score": 1}', "unasked"),
        ("\\xff", ""),
    ],
)
def test_an_answer_outside_the_protocol_ends_the_run(tmp_path: Path, answer: str, complaint: str):
    command = program(tmp_path, f"for line in sys.stdin:\n    os.write(1, b'{answer}\\n')")
    with (
        pytest.raises(RlhfkitError, match=r"scorer command `.*gold scorer") as caught,
        CommandScorer(command) as scorer,
    ):
        scorer.score(items("a"))
    assert complaint in str(caught.value)
    assert caught.value.exit_code == 1
    assert "flush" in str(caught.value.hint)


@pytest.mark.parametrize("tail", ['{"score": 9}\\n', "half a line", "\\n"])
def test_anything_said_at_the_end_is_an_extra_answer(tmp_path: Path, tail: str):
    command = program(tmp_path, LENGTH + f"sys.stdout.write('{tail}')")
    with pytest.raises(RlhfkitError, match="unasked"), CommandScorer(command) as scorer:
        assert scorer.score(items("a", "bb")) == [1.0, 2.0]


def test_a_banner_at_the_start_is_not_an_answer(tmp_path: Path):
    with (
        pytest.raises(RlhfkitError, match="loading"),
        CommandScorer(program(tmp_path, 'print("loading")' + LENGTH)) as scorer,
    ):
        scorer.score(items("a"))


def test_answers_without_reading_are_refused():
    scorer = CommandScorer("""sh -c 'head -c 9 >&2; echo "{\\"score\\":1}"; sleep 30'""")
    with pytest.raises(RlhfkitError, match="before it had read"), scorer:
        scorer.score(items("x" * 1_000_000))


def test_an_endless_line_is_cut():
    with (
        pytest.raises(RlhfkitError, match="longer than"),
        CommandScorer("sh -c 'read -r l; cat /dev/zero'") as scorer,
    ):
        scorer.score(items("a"))


def test_silence_ends_the_run_after_the_timeout(tmp_path: Path):
    command = program(tmp_path, "text = sys.stdin.read()")  # waits for an end that does not come
    with (
        pytest.raises(RlhfkitError, match=r"said nothing for 0\.3 s while id 0 waited"),
        CommandScorer(command, timeout=0.3) as scorer,
    ):
        scorer.score(items("a"))


def test_the_timeout_is_one_of_silence_not_of_work(tmp_path: Path):
    body = "for line in sys.stdin:\n    time.sleep(0.1)\n    print('{\"score\": 1}')"
    with CommandScorer(program(tmp_path, body), timeout=0.6) as scorer:
        assert scorer.score(items(*"abcdefghij")) == [1.0] * 10


def test_a_crash_of_the_program_is_seen_though_its_children_hold_the_pipe():
    started = time.monotonic()
    with (
        pytest.raises(RlhfkitError, match="exit status 4"),
        CommandScorer("sh -c 'sleep 60 & exit 4'") as scorer,
    ):
        scorer.score(items("a"))
    assert time.monotonic() - started < 30


def test_restarts_resume_with_the_unanswered(tmp_path: Path):
    log = tmp_path / "log"
    body = f"""
    with open({str(log)!r}, "a") as file:
        for n, line in enumerate(sys.stdin):
            if n == 3:
                sys.exit(1)
            print('{{"score": %d}}' % json.loads(line)["id"])
            print(json.loads(line)["id"], file=file, flush=True)
    """
    told: list[str] = []

    class Listening(Reporter):
        def warn(self, text: str) -> None:
            told.append(text)

    command = program(tmp_path, body)
    with surroundings(Listening(), Invocation()), CommandScorer(command, restarts=2) as scorer:
        assert scorer.score(items(*"abcdefgh")) == [float(n) for n in range(8)]
    assert log.read_text().split() == [str(n) for n in range(8)]
    assert len(told) == 2
    assert "starting it again" in told[0]
    with pytest.raises(RlhfkitError, match="exit status 1"), CommandScorer(command, restarts=1) as scorer:
        scorer.score(items(*"abcdefgh"))


@pytest.mark.parametrize("command", ["", "  ", "'", "no-such-program-here x", "/"])
def test_a_command_that_cannot_start_is_a_usage_error(command: str):
    with pytest.raises(UsageError):
        open_scorer(f"cmd:{command}")


def test_shell_syntax_gets_a_hint():
    with pytest.raises(RlhfkitError) as caught, CommandScorer("false | tail") as scorer:
        scorer.score(items("a"))
    assert "sh -c" in str(caught.value.hint)


def test_close_kills_the_whole_process_group(tmp_path: Path):
    pids = tmp_path / "pids"
    command = f'sh -c \'sleep 600 & echo $$ $! > {pids}; while read -r l; do echo "{{\\"score\\": 1}}"; done; sleep 600\''
    with open_scorer(f"cmd:{command}") as scorer:
        assert scorer.score(items("a")) == [1.0]
        scorer.close()
        scorer.close()
    assert all(gone(int(pid)) for pid in pids.read_text().split())


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_program_dies_with_us_however_we_die(tmp_path: Path, signum: int):
    pids = tmp_path / "pids"
    command = f"sh -c 'trap \"\" INT TERM HUP; sleep 600 & echo $$ $! > {pids}; exec sleep 600'"
    script = textwrap.dedent(f"""
        import sys
        from rlhfkit.scorers import Scorable, open_scorer
        with open_scorer({"cmd:" + command!r}) as scorer:
            print("ready", flush=True)
            scorer.score([Scorable(1, "p", "c")])
    """)
    user = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert user.stdout is not None
    assert user.stdout.readline() == b"ready\n"
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        time.sleep(0.01)
    user.send_signal(signum)
    user.wait(10)
    user.stdout.close()
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_a_slow_end_is_cut_and_a_bad_one_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlhfkit.scorers.command.CLOSE_SECONDS", 0.5)
    told: list[str] = []

    class Listening(Reporter):
        def warn(self, text: str) -> None:
            told.append(text)

    with surroundings(Listening(), Invocation()):
        for body in (LENGTH + "time.sleep(60)", LENGTH + "sys.exit(3)"):
            with CommandScorer(program(tmp_path, body)) as scorer:
                assert scorer.score(items("a")) == [1.0]
    assert "still ran 0.5 s after" in told[0]
    assert "exit status 3 after its last answer" in told[1]


def test_no_descriptor_is_left_open(tmp_path: Path):
    command = program(tmp_path, LENGTH)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with CommandScorer(command) as scorer:
            scorer.score(items("a"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_group_scores_keep_the_groups_apart(tmp_path: Path):
    with open_scorer("cmd:" + program(tmp_path, LENGTH), ScorerConfig(scorer_timeout=20)) as scorer:
        assert group_scores(scorer, [items("a", "bbb"), [], items("cc")]) == [[1.0, 3.0], [], [2.0]]
