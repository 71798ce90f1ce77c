"""Environment and pseudo-terminals for tests that start the program."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
TOP = HERE.parent.parent
FAKE = "from rlhfkit.cli.main import main; main(stages='fake_stages')"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what would change results, with the checkout and the fake stages importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RLHFKIT_") and k != "COLUMNS"}
    path = os.pathsep.join([str(HERE), str(TOP)])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(extra or {})}


def on_terminal(
    command: Sequence[str], cwd: Path, status: int = 0, env: Mapping[str, str] | None = None
) -> str:
    """What a command shows when all three streams are a terminal."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(command[0], list(command), environment(env))
    shown = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # the other end has gone
            break
        if not piece:
            break
        shown += piece
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    return shown.decode()


def python(code: str, *words: str) -> list[str]:
    """A command that runs `code`."""
    return [sys.executable, "-c", code, *words]
