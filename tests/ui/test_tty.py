"""Ranking on a terminal: what a line means, and the whole command on a real pseudo-terminal."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
import time

import pytest

from rlhfkit.ui.ranking_session import Refused
from rlhfkit.ui.tty import read_tiers


@pytest.mark.parametrize(
    ("line", "tiers"),
    [
        ("b d=a c", [[1], [3, 0], [2]]),
        ("BD=AC", [[1], [3, 0], [2]]),
        ("2 4t1 3", [[1], [3, 0], [2]]),
        ("2,4 = 1,3", [[1], [3, 0], [2]]),
        ("b>d=a>c", [[1], [3, 0], [2]]),
        ("a=b=c=d", [[0, 1, 2, 3]]),
        ("a b c", [[0], [1], [2], [3]]),  # the one left comes last
    ],
)
def test_lines(line, tiers):
    assert read_tiers(line, 4) == tiers


@pytest.mark.parametrize(
    "line", ["a", "a a b c", "a b e", "= a b c d", "a == b c d", "a b c d =", "a ! b", "5", "[/x]", "a b"]
)
def test_lines_that_mean_nothing(line):
    with pytest.raises(Refused):
        read_tiers(line, 4)


class Terminal:
    """The command with its controlling terminal here, standard input and output elsewhere."""

    def __init__(self, folder, rows, *flags, size=(40, 100)):
        samples = folder / "samples.jsonl"
        samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.output, self.log = folder / "out.jsonl", folder / "log"
        self.shown = ""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.dup2(os.open(samples, os.O_RDONLY), 0)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            words = ["rank", "--tty", "--rater", "ann", "-o", str(self.output), *flags]
            os.execv(sys.executable, [sys.executable, "-m", "rlhfkit", *words])
        self.resize(*size)

    def resize(self, lines, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def expect(self, text, seconds=30):
        """Everything shown up to `text`, without colours."""
        deadline = time.monotonic() + seconds
        os.set_blocking(self.master, False)
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.shown!r}; {self.log.read_text()}"
            try:
                self.shown += re.sub(r"\x1b\[[\d;]*[mJH]", "", os.read(self.master, 65536).decode())
            except OSError:  # nothing there, or nobody has opened the terminal yet
                time.sleep(0.01)
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def send(self, line):
        os.write(self.master, line.encode() + b"\n")

    def status(self):
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.master)
        return status


def rows(count=3):
    return [
        {"id": i, "prompt": f"prompt {i}", "completions": [f"{t}{i}" for t in "zyxw"]} for i in range(count)
    ]


def by_letter(screen):
    """The letter of each completion, from panels like `- b 2 -` with their text below."""
    found = {}
    for line, below in zip(screen.splitlines(), screen.splitlines()[1:], strict=False):
        letters = re.findall(r"╭─ ([a-i]) \d", line)
        texts = re.findall(r"│ (\w\d)", below)
        found |= dict(zip(texts, letters, strict=False))
    return found


PROMPT = "(? for help)"


def test_a_whole_dialogue(tmp_path):
    terminal = Terminal(tmp_path, rows())
    letters = by_letter(terminal.expect(PROMPT))
    order = [letters[f"{t}0"] for t in "wxyz"]
    terminal.send("a a b c")
    assert "a stands twice" in terminal.expect(PROMPT)
    terminal.send("?")
    assert "best to worst" in terminal.expect(PROMPT)
    terminal.send("n because")
    terminal.expect(PROMPT)
    terminal.send(f"r {order[0]} 6")
    assert "rated 6" in terminal.expect(PROMPT)
    terminal.send("f")
    assert "flags: flagged" in terminal.expect(PROMPT)
    terminal.send(" ".join(order))
    terminal.expect("prompt 1")
    terminal.expect(PROMPT)
    terminal.send("s")
    terminal.expect("prompt 2")
    terminal.expect(PROMPT)
    terminal.send("u")
    assert "decided: skipped" in terminal.expect(PROMPT)
    terminal.send("a=b=c=d")
    terminal.expect("prompt 2")
    terminal.expect(PROMPT)
    terminal.send("abcd")
    terminal.expect("All done.")
    assert not terminal.output.exists()
    terminal.send("")
    assert terminal.status() == 0
    first, second, _ = (json.loads(line) for line in terminal.output.read_text().splitlines())
    assert first["ranking"] == [[3], [2], [1], [0]]
    assert (first["flags"], first["ratings"], first["note"]) == (
        ["flagged"],
        [None, None, None, 6],
        "because",
    )
    assert (second["ranking"], second["flags"], second["rater"]) == ([[0, 1, 2, 3]], [], "ann")
    assert 0 <= first["seconds"] < 60


def test_kill_ctrl_c_quit_and_going_on(tmp_path):
    terminal = Terminal(tmp_path, rows(5))
    terminal.expect(PROMPT)
    terminal.send("abcd")
    terminal.expect("prompt 1")
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.status() == -9
    terminal = Terminal(tmp_path, rows(5))
    terminal.expect("prompt 1")
    terminal.send("abcd")
    terminal.expect("prompt 2")
    os.write(terminal.master, b"\x03")
    assert terminal.status() == 130
    assert "2 of 5 ranked; kept in" in terminal.log.read_text()
    terminal = Terminal(tmp_path, rows(5))
    terminal.expect("prompt 2")
    terminal.send("abcd")
    terminal.expect("prompt 3")
    terminal.send("q")
    assert terminal.status() == 130
    assert not terminal.output.exists()
    terminal = Terminal(tmp_path, rows(5))
    terminal.expect("prompt 3")
    terminal.send("w")
    assert terminal.status() == 0
    assert [json.loads(line)["id"] for line in terminal.output.read_text().splitlines()] == [0, 1, 2]


def test_nothing_in_a_text_commands_the_terminal(tmp_path):
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxet [bold]x[/] [/x]"
    row = {"prompt": evil, "completions": [evil + "1", evil + "2"]}
    terminal = Terminal(tmp_path, [row], "--rater", "[/x]\x1b]0;owned\x07")
    shown = terminal.expect(PROMPT)
    assert "\\x1b]0;owned\\x07" in shown
    assert "[bold]x[/] [/x]" in shown
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", shown)
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.status() == 143


def test_resizing_draws_again(tmp_path):
    terminal = Terminal(tmp_path, rows(), size=(40, 160))
    wide = terminal.expect(PROMPT)
    assert max(line.count("╭─") for line in wide.splitlines()) == 4
    os.write(terminal.master, b"ab")  # in the middle of a line
    terminal.resize(40, 40)
    narrow = terminal.expect(PROMPT)
    assert max(line.count("╭─") for line in narrow.splitlines()) == 1
    terminal.send("cd")
    terminal.expect("prompt 1")
    terminal.send("q")
    assert terminal.status() == 130
