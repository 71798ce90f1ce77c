"""Laps on request: how a measured side, in a process of its own, works only when it is asked to.

A side calls `Pacer.tick` at the end of every step of its own endless loop, whoever owns that loop. Between
laps the process sleeps inside `tick`, so that several sides can run in turn (A B A B) in one run while each
keeps its allocator, caches and compiled code. One line of JSON answers each line on standard input:

    (start)      {"ready": true}          after the warm-up steps
    lap S        {"seconds": ..., "units": ..., "steps": ..., "cpu": ..., "peak_mb": ..., "figures": {...}}
    profile S    {"profile": [...]}       the operators that a lap spent its CPU time in
    end          the process ends
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import Counter
from typing import Any


def peak_mb() -> float:
    """The most memory that this process has held, in MB (1e6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Pacer:
    """The side's end of the conversation."""

    def __init__(self, warm: int) -> None:
        # What libraries print must not mix with the answers.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._warm = warm
        self._seconds = 0.0
        self._profiler: Any = None
        self._begin()

    def tick(self, units: float, **figures: float) -> None:
        """One step has ended, after `units` of work; sleep here when the lap is over."""
        if self._warm:
            self._warm -= 1
            if not self._warm:
                self.answer({"ready": True})
                self._wait()
            return
        self._units += units
        self._steps += 1
        self._figures.update(figures)
        seconds = time.perf_counter() - self._start
        if seconds < self._seconds:
            return
        if self._profiler is not None:
            self.answer({"profile": self._profile()})
        else:
            self.answer(
                {
                    "seconds": seconds,
                    "units": self._units,
                    "steps": self._steps,
                    "cpu": time.process_time() - self._cpu,
                    "peak_mb": peak_mb(),
                    "figures": dict(self._figures),
                }
            )
        self._wait()

    def answer(self, message: dict[str, object]) -> None:
        """Write one line for the driver."""
        self._answers.write(json.dumps(message) + "\n")

    def _begin(self) -> None:
        self._units = self._steps = 0
        self._figures: Counter[str] = Counter()
        self._cpu = time.process_time()
        self._start = time.perf_counter()

    def _wait(self) -> None:
        words = sys.stdin.readline().split()
        if not words or words[0] == "end":
            # Nothing of what the side was doing is wanted: no last checkpoint, no destructors.
            os._exit(0)
        if words[0] == "profile":
            from torch.profiler import ProfilerActivity, profile

            self._profiler = profile(activities=[ProfilerActivity.CPU])
            self._profiler.start()
        self._seconds = float(words[1])
        self._begin()

    def _profile(self, rows: int = 10) -> list[dict[str, object]]:
        self._profiler.stop()
        found = sorted(self._profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
        total = sum(e.self_cpu_time_total for e in found)
        self._profiler = None
        return [
            {"operator": e.key, "share": e.self_cpu_time_total / total, "calls": e.count}
            for e in found[:rows]
        ]
