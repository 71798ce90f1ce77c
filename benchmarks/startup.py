"""Time to start, beside `import click`: `python -m benchmarks.startup [--repeat K]`.

One JSON line each for `--version`, `--help`, every command's `--help` and the printing of a completion
script: milliseconds of wall time, the median and the best of K runs in turn with the others, and the median
over that of `import click`. (Completion itself starts nothing: the scripts are static.)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.process import in_turn, median_wall
from rlhfkit.stages import names

PROGRAM = str(Path(sys.executable).with_name("rlhfkit"))
PEER = "import click"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    calls = [["--version"], ["--help"], ["completion", "bash"], *([name, "--help"] for name in names())]
    cases = {PEER: [sys.executable, "-c", PEER]}
    cases |= {" ".join(["rlhfkit", *call]): [PROGRAM, *call] for call in calls}
    found = in_turn(cases, options.repeat)
    for name, runs in found.items():
        line = {
            "who": name,
            "median_ms": round(1000 * median_wall(runs)),
            "best_ms": round(1000 * min(used.wall for used in runs)),
            f"over {PEER}": round(median_wall(runs) / median_wall(found[PEER]), 2),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
