"""Whole processes side by side: wall time, CPU time and peak memory, medians of interleaved runs."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Used:
    """What a process took."""

    wall: float  # seconds
    cpu: float  # seconds, its own children included
    peak_mb: float  # of the largest one


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Used:
    """Run a command to its end, its output thrown away. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, **(environment or {})}
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Used(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def in_turn(cases: Mapping[str, Sequence[str]], repeat: int, **environment: str) -> dict[str, list[Used]]:
    """Each case `repeat` times, one after the other (A B A B), after one run of each that does not count."""
    for command in cases.values():
        run(command, environment)
    found: dict[str, list[Used]] = {name: [] for name in cases}
    for _ in range(repeat):
        for name, command in cases.items():
            found[name].append(run(command, environment))
    return found


def median_cpu(runs: Sequence[Used]) -> float:
    return statistics.median(used.cpu for used in runs)


def median_wall(runs: Sequence[Used]) -> float:
    return statistics.median(used.wall for used in runs)


def peak(runs: Sequence[Used]) -> float:
    return max(used.peak_mb for used in runs)
