"""Wall time of every command's `--help`, beside `import click`: `python -m benchmarks.startup`.

One JSON line per command: the median and the best of several runs in milliseconds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rlhfkit.stages import names

RUNS = 7
PROGRAM = str(Path(sys.executable).with_name("rlhfkit"))


def milliseconds(command: list[str]) -> tuple[float, float]:
    subprocess.run(command, capture_output=True, check=True)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), min(times)


def main() -> None:
    cases = {"import click": [sys.executable, "-c", "import click"], "rlhfkit --help": [PROGRAM, "--help"]}
    cases |= {f"rlhfkit {name} --help": [PROGRAM, name, "--help"] for name in names()}
    for name, command in cases.items():
        median, best = milliseconds(command)
        print(
            json.dumps(
                {"benchmark": "start-up", "who": name, "median_ms": round(median), "best_ms": round(best)}
            )
        )


if __name__ == "__main__":
    main()
