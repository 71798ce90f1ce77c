"""Runs the sides of a row in turn, each in its own process, and collects their laps."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: Seconds that a side may need to start and warm up, or for one lap.
PATIENCE = 900
#: A side is not started with less memory free than this (GB): rather a missing peer than a dead run.
SPARE = 3.0
Record = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """Somebody who does a row's work: `who` is the module:function that `side` calls."""

    name: str
    who: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # libraries
    unit: str | None = None  # if not the row's
    quick: bool = True  # takes part in a quick run


@dataclass(frozen=True)
class Row:
    """Work that all its sides do alike."""

    name: str
    title: str
    unit: str
    sides: tuple[Side, ...]
    laps: int = 5
    seconds: float = 4.0  # at least, a lap
    warm: int = 2
    quick: bool = False


class SideError(Exception):
    """A side that failed, or that took too long."""


class Child:
    """A running side."""

    def __init__(self, side: Side, row: Row, work: Path, threads: int) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the child)
        command = [sys.executable, "-m", "benchmarks.side", side.who, str(work), str(row.warm)]
        self.process = subprocess.Popen(
            [*command, json.dumps(dict(side.settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        )

    def answer(self) -> Record:
        """The next line of the child."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise SideError(f"no answer for {PATIENCE} s")
        line = self.process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            raise SideError(said[-1] if said else f"ended with status {self.process.wait()}")
        message: Record = json.loads(line)
        if "error" in message:
            raise SideError(message["error"])
        return message

    def ask(self, command: str) -> Record:
        """Send a command and wait for its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
        except BrokenPipeError:
            raise SideError("ended between two laps") from None
        return self.answer()

    def end(self) -> None:
        """Stop the child, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self._log.close()


def measure(row: Row, work: Path, *, threads: int, profile: bool, say: Callable[[str], None]) -> list[Record]:
    """One record a side: its laps, its peak memory, and (rlhfkit's) its profile; or its error."""
    children: dict[str, Child] = {}
    records: dict[str, Record] = {}
    try:
        for side in row.sides:
            record = records[side.name] = {"side": side.name, "unit": side.unit or row.unit, "laps": []}
            say(f"{row.name}: starting {side.name}")
            if free_gb() < SPARE:
                record["error"] = f"not started: less than {SPARE} GB of memory free"
                continue
            child = children[side.name] = Child(side, row, work, threads)
            _guarded(record, children, lambda child=child: child.answer())  # type: ignore[misc]
        for number in range(row.laps):
            for name in list(children):
                found = _guarded(records[name], children, lambda name=name: _lap(children[name], row.seconds))  # type: ignore[misc]
                if found:
                    records[name]["laps"].append(found)
                    say(f"{row.name}: lap {number + 1}, {name}: {found['units'] / found['seconds']:.5g}")
        for name in [name for name in children if profile and name.startswith("rlhfkit")]:
            found = _guarded(records[name], children, lambda name=name: children[name].ask("profile 1"))  # type: ignore[misc]
            records[name] |= found or {}
    finally:
        for child in children.values():
            child.end()
    return list(records.values())


def _guarded(record: Record, children: dict[str, Child], work: Callable[[], Record]) -> Record | None:
    """What `work` gives; a failing side is noted in its record and ended, and the others go on."""
    try:
        return work()
    except SideError as error:
        record["error"] = str(error)
        children.pop(record["side"]).end()
        return None


def _lap(child: Child, seconds: float) -> Record:
    busy, start = busy_seconds(), time.perf_counter()
    found = child.ask(f"lap {seconds}")
    others = busy_seconds() - busy - found["cpu"]
    found["others"] = max(0.0, others / ((time.perf_counter() - start) * (os.cpu_count() or 1)))
    return found


def busy_seconds() -> float:
    """Processor time that the whole machine has spent since it started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    idle = fields[3] + fields[4]
    # guest time is counted in user time already
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def free_gb() -> float:
    """Memory that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024 / 1e9
    return float("inf")


def module(arguments: Sequence[str]) -> list[Record]:
    """The JSON lines that another benchmark of this package prints; raises SideError if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SideError(said[-1] if said else f"status {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
