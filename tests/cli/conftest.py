"""Running the program over the stages of `fake_stages` or over the real ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_helpers import FAKE, environment

Run = Callable[..., "subprocess.CompletedProcess[Any]"]


@pytest.fixture
def fake_command() -> Sequence[str]:
    """Begin of a command line over the fake stages."""
    return (sys.executable, "-c", FAKE)


@pytest.fixture
def run_fake(fake_command: Sequence[str], tmp_path: Path) -> Run:
    """Run fake stages in a scratch directory; texts, unless text=False."""

    def run(*words: str, env: Mapping[str, str] | None = None, **about: Any) -> Any:
        about = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 60, **about}
        if "input" not in about and "stdin" not in about:
            about["stdin"] = subprocess.DEVNULL
        if "stdout" in about or "stderr" in about:
            del about["capture_output"]
            about = {"stderr": subprocess.PIPE, **about}
        return subprocess.run([*fake_command, *words], env=environment(env), check=False, **about)

    return run


@pytest.fixture
def run_in_shell(tmp_path: Path) -> Run:
    """Run a bash line in which `rlhfkit` means the fake stages."""

    def run(line: str, **about: Any) -> Any:
        prelude = f'rlhfkit() {{ "{sys.executable}" -c "{FAKE}" "$@"; }}; '
        about = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 60, **about}
        return subprocess.run(["bash", "-c", prelude + line], env=environment(), check=False, **about)

    return run
