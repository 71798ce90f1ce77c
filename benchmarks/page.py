"""docs/benchmarks.md from the records of measured rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS, Goal, Verdict, matrix_share
from benchmarks.rows import DATA, all_rows, flops_per_token

Record = dict[str, Any]

INTRODUCTION = """# Benchmarks

`{command}` (`make bench`) measures rlhfkit and its peers in one run and writes this page. Each side is a
process of its own, with its allocator as it ships; the sides of a row work in turn, one lap each (A B A B),
while the others sleep. They share shapes, data, tokens and step sizes. rlhfkit's sides are its commands with
their data loading, logs and checkpoints, at their defaults; peers run at the best setting that they ship.
Rates are medians over the laps, with the lowest and the highest; memory is a process's peak. "Others" is the
share of the machine that other processes took meanwhile: where it is high, trust ratios more than rates.

Measured on {machine}.
"""

#: What the GPU benchmark wrote, if it has been run.
GPU = Path(__file__).with_name("gpu.md")
NO_GPU = """`python -m benchmarks.gpu` runs the same work on one CUDA device; its docstring says how. It has
not been run on a GPU yet.
"""


def rates(side: Record) -> list[float]:
    """Units a second of every lap."""
    return [lap["units"] / lap["seconds"] for lap in side["laps"]]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def page(measured: Sequence[Record], command: str) -> str:
    """The page; of every row the newest record counts."""
    newest = {record["row"]: record for record in measured}
    order = [row.name for row in all_rows(None)]
    rows = {name: newest.pop(name) for name in order if name in newest} | newest
    parts = [INTRODUCTION.format(command=command, machine=machines(rows.values()))]
    verdicts = [(goal, goal.judge(rows)) for goal in GOALS if goal.row in rows]
    if verdicts:
        parts.append(goal_table(verdicts))
    parts += [section(row) for row in rows.values()]
    missed = {goal.row for goal, verdict in verdicts if verdict.reached is False}
    parts += [profile(rows[name]) for name in rows if name in missed and "sides" in rows[name]]
    gpu = "## GPU\n\n" + (GPU.read_text(encoding="utf-8") if GPU.exists() else NO_GPU)
    return "\n".join(part for part in [*parts, gpu] if part)


def machines(rows: Iterable[Record]) -> str:
    """Where and when the rows were measured, each place once."""
    places: dict[str, set[str]] = {}
    for row in rows:
        data = "" if row["data"] == "real" else ", made-up records"
        places.setdefault(row["machine"] + data, set()).add(row["date"])
    return "; ".join(f"{', '.join(sorted(dates))}: {place}" for place, dates in places.items())


def goal_table(verdicts: Sequence[tuple[Goal, Verdict]]) -> str:
    words = {True: "yes", False: "**no**", None: "not measured"}
    lines = [[g.title, g.wanted(), v.measured, words[v.reached]] for g, v in verdicts]
    return "## Goals\n\n" + table(["work", "goal", "measured", "reached"], lines)


def section(row: Record) -> str:
    title = f"## {row['title']}\n\n"
    if "table" in row:
        columns = list(dict.fromkeys(key for line in row["table"] for key in line))
        return title + table(columns, [[line.get(c, "") for c in columns] for line in row["table"]])
    if "error" in row:
        return title + f"Failed: {row['error']}\n"
    first = next((rates(s) for s in row["sides"] if s["laps"]), None)
    lines = []
    for side in row["sides"]:
        if not side["laps"]:
            lines.append([side["side"], f"not measured: {side['error']}", "", "", "", ""])
            continue
        found, laps = rates(side), side["laps"]
        same = side["unit"] == row["sides"][0]["unit"]
        scale, suffix = (1.0, "") if same else (1e-9, f" G{side['unit']}/s")
        middle, low, high = (number(scale * x) for x in (median(found), min(found), max(found)))
        lines.append(
            [
                side["side"],
                f"{middle} ({low}..{high}){suffix}",
                f"{median(first) / median(found):.2f}" if first and same else "",
                number(scale * median(lap["units"] / max(lap["cpu"], 1e-9) for lap in laps)),
                f"{max(lap['peak_mb'] for lap in laps):.0f}",
                f"{median(lap['others'] for lap in laps):.0%}",
            ]
        )
    unit = row["sides"][0]["unit"]
    columns = ["who", f"{unit}s/s (min..max)", "rlhfkit over it", "a CPU second", "peak MB", "others"]
    parts = [title + table(columns, lines), phases(row), matrix_words(row)]
    laps = max((len(s["laps"]) for s in row["sides"]), default=0)
    return "\n".join(
        part for part in [*parts, f"Laps: {laps}, of at least {row['seconds']} s and one step.\n"] if part
    )


def phases(row: Record) -> str:
    """Seconds of a step by phase, where the sides tell."""
    lines = []
    for side in row["sides"]:
        steps = sum(lap["steps"] for lap in side["laps"])
        totals: dict[str, float] = {}
        for lap in side["laps"]:
            for name, seconds in lap["figures"].items():
                totals[name] = totals.get(name, 0.0) + seconds / steps
        whole = sum(totals.values())
        if totals:
            said = ", ".join(f"{k} {v:.2f} s ({v / whole:.0%})" for k, v in totals.items())
            lines.append(f"- {side['side']}: {said}")
    return "Phases of an iteration:\n\n" + "\n".join(lines) + "\n" if lines else ""


def matrix_words(row: Record) -> str:
    """How much of the measured matrix rate the first side's model FLOPs are."""
    if not row["row"].startswith("pretrain-") or (share := matrix_share(row)) is None:
        return ""
    shape = row["row"].removeprefix("pretrain-")
    return (
        f"A token of shape {shape} (context {DATA[shape]['context']}) takes "
        f"{flops_per_token(shape) / 1e6:.0f} MFLOP: rlhfkit computes at {share:.0%} "
        "of the rate of bf16 matrix products of 1024 x 1024.\n"
    )


def profile(row: Record) -> str:
    """Where rlhfkit's CPU time goes in a row whose goal is not reached."""
    found = next((s["profile"] for s in row["sides"] if s.get("profile")), None)
    if not found:
        return ""
    lines = [[f"`{e['operator']}`", f"{e['share']:.1%}", e["calls"]] for e in found]
    title = f"### Where the time goes: {row['row']}\n\n"
    return title + table(["operator", "share of the profiled time", "calls"], lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value >= 1e6:
        return f"{value:.3g}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)
