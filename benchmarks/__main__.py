"""Measure rlhfkit beside its peers and write docs/benchmarks.md.

    python -m benchmarks                     everything, about 20 minutes on two cores; `make bench`
    python -m benchmarks --quick             some rows with short laps, printed, no page; `make bench-quick`
    python -m benchmarks --only ppo --only sft
    python -m benchmarks --page              the page again, from what has been measured

Every row is appended to a file of JSON lines as soon as it is measured, and the page is made from the newest
line of each: a row that failed can be measured again alone. A side that fails, or whose library is not
installed (`pip install -e '.[bench]'`), is named in its row and does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.drive import ROOT, Row, SideError, measure, module
from benchmarks.page import page, section
from benchmarks.rows import all_rows, missing

PAGE = ROOT / "docs" / "benchmarks.md"
MEASURED = ROOT / "benchmarks" / "measured.jsonl"
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "tokenizers", "tiktoken", "msgspec", "click")
Record = dict[str, Any]


def modules(quick: bool, work: Path) -> dict[str, tuple[str, list[str]]]:
    """The rows that have a program of their own: title and arguments of python."""
    text, repeat = str(work / "text.jsonl"), "1" if quick else "3"
    return {
        "tokenize": ("Tokenizing", ["-m", "benchmarks.tokenizing", text, "--repeat", repeat]),
        "records": ("Records", ["-m", "benchmarks.jsonl", "5000" if quick else "50000"]),
        "startup": ("Start-up", ["-m", "benchmarks.startup"]),
    }


def machine(threads: int) -> str:
    """Processor, memory and versions, in words."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = [f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return (
        f"{processor}, {os.cpu_count()} processors, {threads} threads, {memory:.1f} GiB, {', '.join(found)}, "
        f"rlhfkit at {commit.stdout.strip() or 'an unknown commit'}"
    )


def taking_part(row: Row, quick: bool) -> tuple[Row, list[Record]]:
    """The row with the sides that can be measured, and records of those whose libraries are missing."""
    sides = [side for side in row.sides if side.quick or not quick]
    absent = [
        {"side": side.name, "unit": row.unit, "laps": [], "error": f"{' and '.join(names)} not installed"}
        for side in sides
        if (names := missing(side))
    ]
    return replace(row, sides=tuple(side for side in sides if not missing(side))), absent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="under 3 minutes; prints, writes no page")
    parser.add_argument("--only", action="append", metavar="ROW", help="measure this row (repeatable)")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--page", action="store_true", help="only write the page, from earlier measurements")
    parser.add_argument("--laps", type=int, help="laps of every side")
    parser.add_argument("--seconds", type=float, help="least seconds of a lap")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every side (default: all)")
    parser.add_argument(
        "--data", type=Path, default=ROOT / ".." / "shared" / "data", help="directory of real records"
    )
    parser.add_argument(
        "--nanogpt", default=os.environ.get("NANOGPT"), help="a checkout of nanoGPT (or $NANOGPT)"
    )
    parser.add_argument("--output", type=Path, default=PAGE, metavar="PAGE", help="the page to write")
    parser.add_argument("--measured", type=Path, default=MEASURED, help="file of measurements")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    rows = {row.name: row for row in all_rows(options.nanogpt)}
    names = [*rows, *modules(False, Path())]
    if options.list:
        print("\n".join(names))
        return
    chosen = options.only or [n for n in names if not options.quick or n not in rows or rows[n].quick]
    if unknown := set(chosen) - set(names):
        raise SystemExit(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    # Sides and their directory must not outlive a run that is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not options.page:
        with tempfile.TemporaryDirectory() as work:
            run(options, [name for name in names if name in chosen], rows, Path(work))
    if not options.quick:
        measured = [json.loads(line) for line in options.measured.read_text().splitlines()]
        options.output.write_text(page(measured, "python -m benchmarks"), encoding="utf-8")
        say(f"wrote {options.output}")


def run(options: argparse.Namespace, chosen: list[str], rows: dict[str, Row], work: Path) -> None:
    """Measure the chosen rows, and keep each as soon as it is there."""
    data = [str(options.data.resolve())] if options.data.is_dir() else []
    megabytes = "4" if options.quick else "20"
    say("preparing data" + ("" if data else f": made-up records, since {options.data} is not there"))
    subprocess.run(
        [sys.executable, "-m", "benchmarks.data", str(work), megabytes, *data], cwd=ROOT, check=True
    )
    about = {
        "machine": machine(options.threads),
        "data": "real" if data else "made up",
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    }
    for name in chosen:
        record: Record = {"row": name, "date": time.strftime("%Y-%m-%d"), **about}
        if name in rows:
            row, absent = taking_part(rows[name], options.quick)
            if options.quick:
                row = replace(row, laps=2, seconds=1.0, warm=1)
            row = replace(row, laps=options.laps or row.laps, seconds=options.seconds or row.seconds)
            record |= {"title": row.title, "seconds": row.seconds}
            profile = not options.quick
            found = measure(row, work, threads=options.threads, profile=profile, say=say)
            record["sides"] = found + absent
        else:
            title, command = modules(options.quick, work)[name]
            record["title"] = title
            say(f"{name}: python {shlex.join(command)}")
            try:
                record["table"] = module(command)
            except SideError as error:
                record["error"] = str(error)
        if not options.quick:
            with open(options.measured, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        print(section(record), flush=True)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
