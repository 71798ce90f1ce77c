"""What the program does around a stage: streams, exit codes, signals, outputs. In real processes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_helpers import environment, on_terminal


def rows(path: Path, count: int = 3) -> Path:
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(count)))
    return path


# -- output ------------------------------------------------------------------------------------------------


def test_records_pass_from_standard_input_to_standard_output(run_fake):
    done = run_fake("copy-rows", input='{"b":1,"a":"\u00e9\\u00e9"}\n\n{"c":null}')
    assert done.stdout == '{"b":1,"a":"\u00e9\u00e9"}\n{"c":null}\n'
    assert (done.returncode, done.stderr) == (0, "")


def test_dash_names_standard_input_and_output(run_fake):
    done = run_fake("copy-rows", "-", "-o", "-", input='{"a":1}\n')
    assert (done.returncode, done.stdout) == (0, '{"a":1}\n')


def test_output_file_is_written_whole_and_compressed_by_name(run_fake, tmp_path):
    source = rows(tmp_path / "rows.jsonl")
    assert run_fake("copy-rows", str(source), "-o", "copy.jsonl.gz").returncode == 0
    assert gzip.decompress((tmp_path / "copy.jsonl.gz").read_bytes()) == b'{"n":0}\n{"n":1}\n{"n":2}\n'


def test_existing_output_is_refused_without_force(run_fake, tmp_path):
    rows(tmp_path / "rows.jsonl")
    (tmp_path / "copy.jsonl").write_text("old")
    done = run_fake("copy-rows", "rows.jsonl", "-o", "copy.jsonl")
    assert done.returncode == 73
    assert done.stderr.startswith("copy.jsonl: error: ")
    assert (tmp_path / "copy.jsonl").read_text() == "old"
    assert run_fake("copy-rows", "rows.jsonl", "-o", "copy.jsonl", "--force").returncode == 0
    assert (tmp_path / "copy.jsonl").read_text().count("\n") == 3


def test_a_bad_record_leaves_nothing_under_the_name_of_the_output(run_fake, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"n":0}\n{"n":\n')
    done = run_fake("copy-rows", "rows.jsonl", "-o", "copy.jsonl")
    assert done.returncode == 65
    assert done.stderr.startswith("rows.jsonl:2")
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_input_and_output_may_not_be_one_file(run_fake, tmp_path, force):
    rows(tmp_path / "rows.jsonl")
    done = run_fake("copy-rows", "rows.jsonl", "-o", "./rows.jsonl", *force)
    assert done.returncode == 73
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 3


def test_appending_a_file_to_itself_is_refused(run_in_shell, tmp_path):
    rows(tmp_path / "rows.jsonl")
    assert run_in_shell("rlhfkit copy-rows rows.jsonl >> rows.jsonl").returncode == 73
    assert run_in_shell("rlhfkit copy-rows < rows.jsonl >> rows.jsonl").returncode == 73
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 3


def test_dry_run_creates_no_output(run_fake, tmp_path):
    rows(tmp_path / "rows.jsonl")
    assert run_fake("copy-rows", "rows.jsonl", "-o", "copy.jsonl", "--dry-run").returncode == 0
    assert not (tmp_path / "copy.jsonl").exists()


def test_every_batch_is_flushed_before_the_next_is_read(fake_command, tmp_path):
    process = subprocess.Popen(
        [*fake_command, "copy-rows"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        cwd=tmp_path,
    )
    assert process.stdin
    assert process.stdout
    for n in range(2):
        process.stdin.write(b'{"n":%d}\n' % n)
        process.stdin.flush()
        assert process.stdout.readline() == b'{"n":%d}\n' % n
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()


def test_records_on_a_terminal_are_escaped_but_equal(fake_command, tmp_path):
    record = {"text": "a\u202eb\x9bc\u200bd\U000e0041 \u3000é😀"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n")
    shown = on_terminal([*fake_command, "copy-rows", "rows.jsonl"], tmp_path)
    assert json.loads(shown) == record
    assert not any(char in shown for char in "\u202e\x9b\u200b\U000e0041")
    assert "é😀" in shown


# -- broken streams ----------------------------------------------------------------------------------------


def test_closed_pipe_ends_silently_with_141(run_in_shell, tmp_path):
    rows(tmp_path / "rows.jsonl", 2000)
    done = run_in_shell("rlhfkit copy-rows --times 50 rows.jsonl | head -n 1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr, done.stdout) == (141, "", '{"n":0}\n')


def test_help_into_a_closed_pipe_is_silent(run_in_shell):
    done = run_in_shell("(sleep 0.5; rlhfkit copy-rows --help) | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "words", ["copy-rows rows.jsonl", "slow-train rows.jsonl -o run", "fail fine", "--help"]
)
def test_full_disk_behind_standard_output(run_in_shell, tmp_path, words):
    rows(tmp_path / "rows.jsonl")
    done = run_in_shell(f"rlhfkit {words} > /dev/full")
    assert done.returncode == 74
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert errors == ["<stdout>: error: cannot write: no space left on device"]


@pytest.mark.parametrize(
    "words", ["copy-rows rows.jsonl", "slow-train rows.jsonl -o run", "fail fine", "--version"]
)
def test_closed_standard_output(run_in_shell, tmp_path, words):
    rows(tmp_path / "rows.jsonl")
    done = run_in_shell(f"rlhfkit {words} >&-")
    assert (done.returncode, done.stderr) == (74, "<stdout>: error: standard output is closed\n")
    assert not (tmp_path / "run").exists()


def test_closed_standard_output_does_not_matter_when_a_file_is_written(run_in_shell, tmp_path):
    rows(tmp_path / "rows.jsonl")
    assert run_in_shell("rlhfkit copy-rows rows.jsonl -o copy.jsonl >&-").returncode == 0
    assert (tmp_path / "copy.jsonl").read_text().count("\n") == 3


def test_closed_standard_input(run_in_shell):
    done = run_in_shell("rlhfkit copy-rows <&-")
    assert (done.returncode, done.stderr) == (66, "<stdin>: error: standard input is closed\n")


def test_closed_standard_error_is_survived(run_in_shell, tmp_path):
    rows(tmp_path / "rows.jsonl")
    assert run_in_shell("rlhfkit copy-rows --talk rows.jsonl 2>&- >copy").returncode == 0
    assert run_in_shell("rlhfkit copy-rows --talk rows.jsonl 2>/dev/full >copy").returncode == 0
    assert run_in_shell("rlhfkit fail one 2>&-").returncode == 65


# -- talk --------------------------------------------------------------------------------------------------


def test_talk_goes_to_standard_error_and_is_made_safe(run_fake):
    done = run_fake("copy-rows", "--talk", input='{"a":1}\n')
    assert done.stdout == '{"a":1}\n'
    assert done.stderr == "row 1\nwarning: that was a row\\x1b[2J\n"


def test_quiet_silences_talk(run_fake):
    assert run_fake("copy-rows", "--talk", "-q", input='{"a":1}\n').stderr == ""


def test_trainer_prints_one_summary_line(run_fake, tmp_path):
    rows(tmp_path / "rows.jsonl")
    done = run_fake("slow-train", "rows.jsonl", "-o", "run", "--steps", "3")
    assert json.loads(done.stdout) == {"output": "run", "steps": 3, "inputs": ["rows.jsonl"]}
    assert done.stderr.startswith("slow-train: 3/3 steps")
    assert done.stderr.count("\n") == 1


# -- no input on a terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["copy-rows"], ["slow-train", "-o", "run"]])
def test_short_help_instead_of_waiting_for_a_person(fake_command, tmp_path, words):
    shown = on_terminal([*fake_command, *words], tmp_path, status=2)
    assert shown.startswith("Usage: rlhfkit " + words[0])
    assert "Examples:" in shown
    assert "--limit" not in shown


def test_a_setting_may_stand_in_for_the_inputs(fake_command, run_fake, tmp_path):
    assert on_terminal([*fake_command, "copy-rows", "--invent", "1"], tmp_path).split() == ['{"n":0}']
    assert run_fake("copy-rows", env={"RLHFKIT_COPY_ROWS_INVENT": "1"}, input='{"a":1}').stdout == '{"n":0}\n'


def test_bar_on_a_terminal(fake_command, tmp_path):
    rows(tmp_path / "rows.jsonl")
    words = ["slow-train", "rows.jsonl", "-o", "run", "--steps", "3", "--step-seconds", "0.2"]
    shown = on_terminal([*fake_command, *words], tmp_path, env={"TERM": "xterm", "COLUMNS": "120"})
    assert "3/3 steps" in shown
    assert "loss 0.3333" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0  # the cursor is back
    plain = on_terminal([*fake_command, *words, "--force"], tmp_path, env={"TERM": "dumb"})
    assert "\x1b" not in plain


# -- exit codes and messages -------------------------------------------------------------------------------

FAILURES = {
    "one": (65, "demos.jsonl:17: error: completion: missing\\x1b[31m\\nsecond\nhint: use --map\n"),
    "run": (1, "rlhfkit fail: error: the loss is not finite\n"),
    "usage": (2, "rlhfkit fail: error: --a: does not go with --b\n"),
    "exists": (73, "out: error: exists\n"),
    "locked": (75, "out: error: held by process 7\n"),
    "disk": (74, "big.bin: error: no space left on device\n"),
    "pipe": (74, "rlhfkit fail: error: broken pipe\n"),
    "interrupt": (130, ""),
    "fine": (0, ""),
}


@pytest.mark.parametrize("how", FAILURES)
def test_exit_status_and_lines_of(run_fake, how):
    done = run_fake("fail", how)
    assert (done.returncode, done.stderr) == FAILURES[how]
    assert done.stdout == "before\n"


@pytest.mark.parametrize("how", ["bug", "panic"])
def test_a_bug_is_one_line_and_how_to_report_it(run_fake, how):
    done = run_fake("fail", how)
    assert done.returncode == 70
    first, second = done.stderr.splitlines()
    assert first.startswith("rlhfkit fail: error: internal error: ")
    assert "(fail.py:" in first
    assert "--debug" in second


def test_debug_adds_the_traceback(run_fake):
    done = run_fake("fail", "bug", "--debug")
    assert done.stderr.startswith("Traceback")
    assert "KeyError: 'x'" in done.stderr
    assert "Traceback" in run_fake("fail", "bug", env={"RLHFKIT_FAIL_DEBUG": "1"}).stderr


def test_out_of_memory_is_no_bug(run_fake):
    done = run_fake("fail", "memory")
    assert done.returncode == 1
    assert done.stderr.startswith("rlhfkit fail: error: out of memory\nhint: ")


def test_ten_bad_records_then_how_many_more(run_fake):
    done = run_fake("fail", "many")
    lines = done.stderr.splitlines()
    assert done.returncode == 65
    assert lines[:10] == [f"rows.jsonl:{n}: error: bad {n}" for n in range(1, 11)]
    assert lines[10:] == ["and 2 more", "hint: mend it"]


def test_missing_input(run_fake):
    done = run_fake("copy-rows", "nowhere.jsonl")
    assert done.returncode == 66
    assert done.stderr.startswith("nowhere.jsonl: error: ")


# -- wrong usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["copy-row"], "no such command: copy-row", "did you mean copy-rows?"),
        (["nothing-like-it"], "no such command: nothing-like-it", "lists the commands"),
        (["--versoin"], "no such option: --versoin", "did you mean --version?"),
        (["--limit", "3"], "no such option: --limit", "after its name"),
        (["help", "settel"], "no such command: settel", "did you mean settle?"),
        (["settle", "--packign"], "no such option: --packign", "did you mean --packing?"),
        (["settle", "--zzz"], "no such option: --zzz", "`rlhfkit settle --help` lists the options"),
        (["settle", "-name", "x"], "no such option: -name", "did you mean --name?"),
        (["settle", "-m", "x", "--mode", "fats"], "--mode: 'fats' is not one of fast, slow", "mean fast?"),
        (
            ["settle", "-m", "x", "--count", "10"],
            "--count: 10 is out of range: it must be at least 1 and at",
            "",
        ),
        (["settle", "-m", "x", "--count", "1.5"], "--count: '1.5' is not a whole number", ""),
        (["settle", "-m", "x", "--ratio", "nan"], "--ratio: nan is not a finite number", ""),
        (["settle", "-m", "x", "--ratio", "0"], "--ratio: 0.0 is out of range: it must be above 0", ""),
        (["settle", "-m", "x", "--loud=1"], "--loud takes no value", ""),
        (["settle", "-m"], "-m needs a value (DIR)", ""),
        (["settle"], "-m/--model is required", "give --model DIR"),
        (["settle", "-m", "x", "y"], "unexpected argument: y", "takes flags only"),
        (["fail"], "is missing", "The way"),
        (["fail", "bugg"], "'bugg' is not one of", "did you mean bug?"),
        (["fail", "one", "two"], "unexpected argument: two", "takes one"),
        (["fail", "-"], "cannot read", ""),
    ],
)
def test_wrong_usage_exits_2_with_a_suggestion(run_fake, words, message, hint):
    done = run_fake(*words)
    assert (done.returncode, done.stdout) == (2, "")
    first, *rest = done.stderr.splitlines()
    assert first.startswith("rlhfkit")
    assert message in first
    assert hint in "".join(rest)
    assert len(rest) <= 1


def test_no_command_shows_help_on_standard_error(run_fake):
    done = run_fake()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: rlhfkit COMMAND" in done.stderr


def test_help_of_a_command_three_ways(run_fake):
    texts = {
        run_fake(*words).stdout for words in (["settle", "-h"], ["settle", "--help"], ["help", "settle"])
    }
    assert len(texts) == 1
    assert "--packing/--no-packing" in texts.pop()


# -- signals -----------------------------------------------------------------------------------------------


def start(command: list[str], cwd: Path, **about: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **about,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_filter_stops_at_once_and_leaves_no_file(fake_command, tmp_path, number):
    (tmp_path / "rows.jsonl").write_text('{"n":0}\n{"sleep":60}\n')
    with start([*fake_command, "copy-rows", "rows.jsonl", "-o", "out.jsonl"], tmp_path) as process:
        deadline = time.monotonic() + 30
        while len(os.listdir(tmp_path)) < 2:  # the temporary file
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (128 + number, "")
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_trainer_saves_first(fake_command, tmp_path, number):
    words = ["slow-train", "rows.jsonl", "-o", "run", "--steps", "1000", "--step-seconds", "0.3"]
    with start([*fake_command, *words], tmp_path) as process:
        wait_for(tmp_path / "run" / "started")
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert (tmp_path / "run" / "saved").exists()
    assert errors.splitlines()[0] == "stopping after this step and saving; once more to stop at once"
    assert f"stopped by signal {int(number)} after step" in errors


def test_a_second_signal_ends_a_trainer_on_the_spot(fake_command, tmp_path):
    words = ["slow-train", "rows.jsonl", "-o", "run", "--steps", "2", "--step-seconds", "60"]
    with start([*fake_command, *words], tmp_path) as process:
        wait_for(tmp_path / "run" / "started")
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert "once more" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 143
    assert not (tmp_path / "run" / "saved").exists()


def test_a_trainer_that_has_not_begun_stops_at_once(fake_command, tmp_path):
    words = ["slow-train", "rows.jsonl", "-o", "run", "--load-seconds", "60"]
    with start([*fake_command, *words], tmp_path) as process:
        wait_for(tmp_path / "run" / "loading")
        time.sleep(0.2)  # a signal in the instant before a sleep begins is seen when it ends, by any Python
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (143, "")


def test_an_ignored_interrupt_stays_ignored(fake_command, tmp_path):
    words = ["slow-train", "rows.jsonl", "-o", "run", "--steps", "3", "--step-seconds", "0.3"]
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *fake_command, *words]
    with start(command, tmp_path) as process:
        wait_for(tmp_path / "run" / "started")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


# -- several processes -------------------------------------------------------------------------------------


def test_several_processes_refuse_standard_input(run_fake):
    done = run_fake("slow-train", "-o", "run", env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.returncode == 2
    assert "several processes cannot share standard input" in done.stderr


def test_other_processes_print_nothing(run_fake):
    words = ("slow-train", "rows.jsonl", "-o", "run", "--steps", "2")
    done = run_fake(*words, env={"WORLD_SIZE": "2", "RANK": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wrong = run_fake(*words, "--lr", "x", env={"WORLD_SIZE": "2", "RANK": "1"})
    assert (wrong.returncode, wrong.stderr) == (2, "")


def test_a_filter_refuses_several_processes(run_fake):
    done = run_fake("copy-rows", "rows.jsonl", env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.returncode == 2
    assert "without torchrun" in done.stderr
