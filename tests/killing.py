"""Run rlhfkit commands, kill them at random moments, and start them again.

Importing torch takes over a second, so one process imports everything and forks a child per run. It has
computed nothing before, so no thread pool exists that a fork could break.

    python tests/killing.py --seed 1 --kills 10 -- sft demos.jsonl -m base -o out

runs the command once for reference, then kills and restarts it until it has died `kills` times, starting
over whenever it gets through. Prints the number of kills and of finished runs, all of whose weights had the
SHA-256 of the reference, or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of every weights file of a finished run."""
    assert (output / "run.json").is_file(), "not finished"
    assert not (output / "checkpoints").exists(), "checkpoints were left behind"
    files = sorted(output.rglob("*.safetensors"))
    return {str(f.relative_to(output)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def start(argv: list[str], log: Path) -> int:
    """Fork a child that runs the command; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        from rlhfkit.cli.main import main

        sys.argv = ["rlhfkit", *argv]
        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        os._exit(code)


def finish(pid: int, log: Path) -> None:
    """Wait for a child that must succeed."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"exit {status}: {log.read_text()}"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--signal", type=int, default=int(signal.SIGKILL))
    parser.add_argument(
        "--expect", type=int, default=-int(signal.SIGKILL), help="exit status after the signal"
    )
    parser.add_argument("argv", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    argv = [a for a in options.argv if a != "--"]
    output = Path(argv[argv.index("-o") + 1])
    log = output.with_name(output.name + ".log")
    import torch  # noqa: F401

    import rlhfkit.data.tokenizer
    import rlhfkit.engine.iteration
    import rlhfkit.stages.ppo  # noqa: F401

    began = time.monotonic()
    finish(start(argv, log), log)
    whole = time.monotonic() - began
    reference = digests(output)
    shutil.rmtree(output)

    rng = random.Random(options.seed)
    kills = finished = 0
    while kills < options.kills:
        pid = start(argv, log)
        deadline = time.monotonic() + rng.uniform(0, whole)
        done = 0
        while not done and time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
        if not done:
            os.kill(pid, options.signal)
            status = os.waitpid(pid, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        if code == 0 or (output / "run.json").is_file():
            assert digests_or_rerun(output, argv, log) == reference, f"other weights after {kills} kills"
            finished += 1
            shutil.rmtree(output)
            continue
        assert code == options.expect, f"exit {code}: {log.read_text()}"
        kills += 1
    finish(start(argv, log), log)
    assert digests(output) == reference, "other weights at the end"
    print(kills, finished + 1)


def digests_or_rerun(output: Path, argv: list[str], log: Path) -> dict[str, str]:
    """A run killed after its run.json was written but before it cleared up is finished."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(output / "checkpoints")
    return digests(output)


if __name__ == "__main__":
    main()
