"""cmd:COMMAND: a program of the user's as scorer.

Protocol: started once; per completion one JSON line `{"id", "prompt", "completion"}` on its standard
input and one JSON line `{"score": number}` on its standard output, in order. An answer may carry more
fields; an `id` among them must be the one asked for. Nothing else may appear on standard output. What
it says on standard error is drained and its last lines are quoted when it fails.

One selector loop writes, reads and drains, so a batch of any size cannot deadlock on full pipes. The
program runs in a session of its own and its whole process group is killed on close; a watchdog shell
that holds the other end of a pipe of ours does the same when this process is killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import IO

import msgspec

from rlhfkit.context import leave_if_asked, warn
from rlhfkit.errors import RlhfkitError, UsageError
from rlhfkit.scorers import Scorable, Scorer

MAX_ANSWER_BYTES = 2**20  # one line of its standard output
KEPT_STDERR_LINES = 20
CLOSE_SECONDS = 5.0  # between the end of its input and the kill
LAST_WORDS_SECONDS = 0.1  # for its standard error to arrive when it has failed
POLL_SECONDS = 1.0
READ_BYTES = 2**16
PROTOCOL_HINT = (
    'it must print one line {"score": number} for each line it reads and nothing else, without waiting for '
    "the end of its input, and flush its standard output after each"
)
SHELL_WORDS = frozenset(("|", "||", "&&", ";", "&", ">", ">>", "<", "2>"))


class _Answer(msgspec.Struct):
    score: float
    id: str | int | msgspec.UnsetType = msgspec.UNSET


class _Died(Exception):
    """The program ended or fell silent; starting it again may help."""


class _Process:
    """The running program, its pipes, and the watchdog that outlives us for a moment."""

    def __init__(self, argv: list[str]) -> None:
        # Python buffers a piped standard output in blocks, which would look like silence.
        environment = {"PYTHONUNBUFFERED": "1", **os.environ}
        self.popen = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self.watchdog = _start_watchdog(self.popen.pid)
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.stdin: IO[bytes] = self.popen.stdin
        self.stdout: IO[bytes] = self.popen.stdout
        self.stderr: IO[bytes] = self.popen.stderr
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe.fileno(), False)
        self.outgoing = memoryview(b"")  # not yet written to its standard input
        self.lines: deque[bytes] = deque()  # whole lines of its standard output, not yet taken
        self.partial = b""
        self.stderr_tail: deque[str] = deque(maxlen=KEPT_STDERR_LINES)
        self._stderr_partial = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.stdout, selectors.EVENT_READ, self._read_stdout)
        self.selector.register(self.stderr, selectors.EVENT_READ, self._read_stderr)
        self.at_end = False  # its standard output is closed

    def _read_stdout(self) -> None:
        data = self._read(self.stdout)
        if not data:
            self.at_end = True
            return
        *whole, self.partial = (self.partial + data).split(b"\n")
        self.lines.extend(whole)

    def _write_stdin(self) -> None:
        try:
            self.outgoing = self.outgoing[os.write(self.stdin.fileno(), self.outgoing[:READ_BYTES]) :]
        except BrokenPipeError:  # it closed its input: whether that is its end shows on its output
            self.outgoing = memoryview(b"")

    def _read_stderr(self) -> None:
        data = self._read(self.stderr)
        *whole, self._stderr_partial = (self._stderr_partial + (data or b"\n")).split(b"\n")
        self._stderr_partial = self._stderr_partial[-READ_BYTES:]
        self.stderr_tail.extend(line.decode("utf-8", "replace").rstrip() for line in whole if line.strip())

    def _read(self, pipe: IO[bytes]) -> bytes:
        """What is there; empty at the end of the pipe, which is then no longer watched."""
        data = os.read(pipe.fileno(), READ_BYTES)
        if not data:
            self.selector.unregister(pipe)
        return data

    def pump(self, seconds: float) -> bool:
        """Wait up to `seconds` for any pipe and move what can be moved; whether anything was."""
        if self.outgoing:
            self.selector.register(self.stdin, selectors.EVENT_WRITE, self._write_stdin)
        try:
            ready = self.selector.select(max(seconds, 0.0))
        finally:
            if self.outgoing:
                self.selector.unregister(self.stdin)
        for key, _ in ready:
            key.data()
        return bool(ready)

    def drain(self, seconds: float) -> None:
        """Read its pipes until they close or `seconds` pass."""
        deadline = time.monotonic() + seconds
        while self.selector.get_map() and (left := deadline - time.monotonic()) > 0:
            self.pump(left)

    def wait(self, seconds: float) -> int | None:
        """Its exit status, waiting at most `seconds`; None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(seconds)
        return None

    @property
    def extra(self) -> bytes | None:
        """The first line or part of one that nobody asked for."""
        return self.lines[0] if self.lines else self.partial or None

    def kill(self) -> None:
        """End the program with everything it started, and the watchdog."""
        # The group first: a watchdog that outlived it could meet the same number in other hands.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.watchdog.kill()
        for process in (self.popen, self.watchdog):
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self.selector.close()


def _start_watchdog(group: int) -> subprocess.Popen[bytes]:
    """A shell that kills the process group when our end of its standard input closes, however we die."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$0"', str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class CommandScorer(Scorer):
    """Scores by asking a program. Raises RlhfkitError naming it when it does not keep the protocol."""

    def __init__(self, command: str, *, timeout: float = 300.0, restarts: int = 0) -> None:
        self.name = f"cmd:{command}"
        self.command = command
        self._timeout = timeout
        self._restarts_left = restarts
        self._answered = 0
        self._argv = _argv(command)
        self._process: _Process | None = self._start()

    def _start(self) -> _Process:
        try:
            return _Process(self._argv)
        except OSError as error:
            raise UsageError(
                f"scorer command `{self.command}` cannot be started: {error.strerror}: {self._argv[0]}",
                hint="a command is a program and its arguments, found through PATH and run without a shell",
            ) from None

    def score(self, items: Sequence[Scorable]) -> list[float]:
        """One score per item from the program's answers."""
        scores: list[float] = []
        while len(scores) < len(items):
            process = self._process
            assert process is not None, "scored after close"
            try:
                self._ask(process, items[len(scores) :], scores)
            except _Died as death:
                error = self._failure(str(death), process)
                process.kill()
                self._process = None
                if not self._restarts_left:
                    raise error from None
                self._restarts_left -= 1
                last = process.stderr_tail[-1] if process.stderr_tail else "nothing"
                warn(f"{error.message}; its last words: {last}; starting it again")
                self._process = self._start()
        return scores

    def _ask(self, process: _Process, items: Sequence[Scorable], scores: list[float]) -> None:
        """Send `items`, append their scores. Raises _Died or RlhfkitError."""
        process.pump(0.0)
        self._refuse_extra(process)
        process.outgoing = memoryview(b"".join(msgspec.json.encode(_request(i)) + b"\n" for i in items))
        last_answer = time.monotonic()
        for item in items:
            due = f"while id {item.id!r} waited for its score"
            while not process.lines:
                leave_if_asked()
                if process.at_end:
                    raise _Died(f"{_status(process.wait(1.0))} {due}")
                left = last_answer + self._timeout - time.monotonic()
                if left <= 0:
                    raise _Died(f"said nothing for {self._timeout:g} s {due}")
                if len(process.partial) > MAX_ANSWER_BYTES:
                    raise self._failure(f"sent a line longer than {MAX_ANSWER_BYTES} bytes", process)
                # Its children may hold the pipe open after its end: look at the process itself, too.
                if not process.pump(min(left, POLL_SECONDS)) and process.wait(0.0) is not None:
                    raise _Died(f"{_status(process.wait(0.0))} {due}")
            scores.append(self._value(process, process.lines.popleft(), item))
            self._answered += 1
            last_answer = time.monotonic()
        if process.outgoing:
            raise self._failure("answered before it had read what it was asked", process)
        process.pump(0.0)
        self._refuse_extra(process)

    def _value(self, process: _Process, line: bytes, item: Scorable) -> float:
        asked = f"for id {item.id!r}"
        try:
            answer = msgspec.json.decode(line, type=_Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._failure(f"answered {_shown(line)} {asked}: {error}", process) from None
        if not math.isfinite(answer.score):
            raise self._failure(f"answered {_shown(line)} {asked}: not a finite number", process)
        if answer.id is not msgspec.UNSET and answer.id != item.id:
            raise self._failure(f"answered {_shown(line)} {asked}: another id", process)
        return answer.score

    def _refuse_extra(self, process: _Process) -> None:
        """Called with every answer taken: anything more means that it is out of step with us."""
        if process.extra is not None:
            raise self._failure(f"sent {_shown(process.extra)} unasked", process)

    def finish(self) -> None:
        """End its input and wait a moment for its exit; anything more on its output is an error."""
        process = self._process
        if process is None:
            return
        process.stdin.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        while not process.at_end and process.extra is None and (left := deadline - time.monotonic()) > 0:
            process.pump(left)
        self._refuse_extra(process)
        status = process.wait(max(deadline - time.monotonic(), 0.0))
        if status is None:
            warn(f"scorer command `{self.command}` still ran {CLOSE_SECONDS:g} s after the end of its input")
        elif status:
            warn(f"scorer command `{self.command}` {_status(status)} after its last answer")

    def close(self) -> None:
        """Kill the program with its process group."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _failure(self, what: str, process: _Process) -> RlhfkitError:
        """The error that names the command; its last words on standard error are the notes."""
        process.drain(LAST_WORDS_SECONDS)
        hint: str | None = PROTOCOL_HINT
        if SHELL_WORDS.intersection(self._argv):
            hint = "a command runs without a shell; for pipes and redirections write cmd:sh -c '...'"
        elif process.stderr_tail:
            hint = None  # what it said itself tells more
        error = RlhfkitError(
            f"scorer command `{self.command}` {what} (after {self._answered} answers)", hint=hint
        )
        for line in process.stderr_tail:
            error.add_note(f"stderr: {line}")
        return error


def _argv(command: str) -> list[str]:
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"scorer command `{command}`: {error}", hint="check its quotes") from None
    if not argv:
        raise UsageError("cmd: names no command", hint="write cmd:python gold.py")
    # A virtual environment that is not activated has no `python` on PATH, and some systems have none.
    if argv[0] in ("python", "python3") and not shutil.which(argv[0]):
        argv[0] = sys.executable
    return argv


def _request(item: Scorable) -> dict[str, object]:
    return {"id": item.id, "prompt": item.prompt, "completion": item.completion}


def _status(status: int | None) -> str:
    if status is None:
        return "closed its standard output"
    if status < 0:
        return f"was killed by signal {-status} ({signal.Signals(-status).name})"
    return f"ended with exit status {status}"


def _shown(line: bytes) -> str:
    """The line as a short literal, safe to print."""
    return ascii(line[:80].decode("utf-8", "replace")) + ("..." if len(line) > 80 else "")
