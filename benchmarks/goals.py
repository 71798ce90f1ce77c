"""What rlhfkit means to reach, and whether a measurement shows it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import MATRIX, flops_per_token

Rows = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """What was found; `reached` None = not measured."""

    measured: str
    reached: bool | None


NOTHING = Verdict("", None)


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals."""

    row: str
    title: str
    want: float
    form: Callable[[float], str]
    find: Callable[[dict[str, Any]], float | None]
    least: bool = True  # else at most

    def wanted(self) -> str:
        return ("at least " if self.least else "at most ") + self.form(self.want)

    def judge(self, rows: Rows) -> Verdict:
        try:
            found = self.find(rows[self.row])
        except (KeyError, StopIteration, ZeroDivisionError):
            return NOTHING
        if found is None:
            return NOTHING
        return Verdict(self.form(found), found >= self.want if self.least else found <= self.want)


def laps(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The laps of the side whose name is or begins with this."""
    sides = row["sides"]
    exact = [s for s in sides if s["side"] == name] or [s for s in sides if s["side"].startswith(name)]
    return exact[0]["laps"] if exact else []


def rate(row: dict[str, Any], name: str) -> float | None:
    found = laps(row, name)
    return statistics.median(lap["units"] / lap["seconds"] for lap in found) if found else None


def ratio(row: str, title: str, want: float, peers: Sequence[str], ours: str = "rlhfkit") -> Goal:
    """rlhfkit's rate over that of the fastest of `peers`."""

    def find(record: dict[str, Any]) -> float | None:
        mine, others = rate(record, ours), [r for p in peers if (r := rate(record, p))]
        return mine / max(others) if mine and others else None

    return Goal(row, title, want, lambda x: f"{x:.2f} x", find)


def matrix_share(record: dict[str, Any]) -> float | None:
    """Model FLOPs a second of rlhfkit over those of plain matrix products."""
    mine, matrix = rate(record, "rlhfkit"), rate(record, MATRIX)
    per_token = flops_per_token(record["row"].removeprefix("pretrain-"))
    return mine * per_token / matrix if mine and matrix else None


def memory(row: str, title: str, want_mb: float) -> Goal:
    def find(record: dict[str, Any]) -> float | None:
        return max((lap["peak_mb"] for lap in laps(record, "rlhfkit")), default=None)

    return Goal(row, title, want_mb, lambda x: f"{x / 1000:.2f} GB", find, least=False)


def lines(record: dict[str, Any], *words: str) -> list[dict[str, Any]]:
    """Lines of a table whose label holds all words."""
    return [
        line
        for line in record["table"]
        if all(w in str(line.get("case", line.get("who", ""))) for w in words)
    ]


def figure(line: dict[str, Any], *names: str) -> float:
    """The first of these columns that the line has."""
    return float(next(line[name] for name in names if name in line))


PER_CPU = ("mb_per_cpu_second", "MB/cpu-s")


def tokenizing(fast: bool, want: float) -> Goal:
    def find(record: dict[str, Any]) -> float | None:
        mine = [line for line in lines(record, "tokenize --") if ("fast" in str(line)) == fast]
        peer = lines(record, "encode_batch")
        if not mine or not peer:
            return None
        best = max(figure(line, *PER_CPU) for line in peer if str(line["case"]).endswith("encode_batch"))
        return max(figure(line, *PER_CPU) for line in mine) / best

    engine = "with the fast engine" if fast else "without it"
    title = f"tokenize, MB a core {engine}, over encode_batch"
    return Goal("tokenize", title, want, lambda x: f"{x:.2f} x", find)


def rank2pairs(record: dict[str, Any]) -> float:
    return max(figure(line, *PER_CPU) for line in lines(record, "rank2pairs"))


def rank2pairs_memory(record: dict[str, Any]) -> float | None:
    return max((figure(line, "peak_mb", "peak MB") for line in lines(record, "rank2pairs")), default=None)


def slowest_help(record: dict[str, Any]) -> float:
    return max(figure(line, "median_ms") for line in lines(record, "rlhfkit")) / 1000


def help_over_click(record: dict[str, Any]) -> float:
    return 1000 * slowest_help(record) / figure(lines(record, "import click")[0], "median_ms")


LOOP, TRAINER, NANO = "transformers loop, bf16", "transformers Trainer, bf16", "nanoGPT"
SFT, GENERATE, PPO = "TRL SFTTrainer, bf16", ("transformers generate",), ("TRL 1.12",)
SHARED = "rlhfkit --value-model shared"
GOALS = (
    ratio("pretrain-a", "pretraining a over transformers in bf16", 1.6, (LOOP, TRAINER)),
    ratio("pretrain-a", "pretraining a over nanoGPT", 3.3, (NANO,)),
    Goal(
        "pretrain-a",
        "pretraining a, share of the bf16 matrix rate",
        0.65,
        lambda x: f"{x:.0%}",
        matrix_share,
    ),
    ratio("pretrain-b", "pretraining b over transformers in bf16", 1.25, (LOOP, TRAINER)),
    ratio("pretrain-b", "pretraining b over nanoGPT", 2.6, (NANO,)),
    ratio("sft", "fine-tuning over TRL packed", 1.8, (f"{SFT}, packing=wrapped",)),
    ratio("sft", "fine-tuning over TRL padded", 2.8, (f"{SFT}, padded",)),
    ratio("rm-pairs", "reward model on pairs over TRL", 3, ("TRL",)),
    ratio("rm-rankings", "reward model on rankings of five over TRL", 5, ("TRL",)),
    ratio("ppo", "PPO over TRL 1.12", 3, PPO),
    ratio("ppo", "PPO with a shared trunk over TRL 1.12", 5.5, PPO, ours=SHARED),
    ratio("sample-1", "sampling, batch 1, over transformers", 1.7, GENERATE),
    ratio("sample-16", "sampling, batch 16, over transformers", 3.3, GENERATE),
    ratio("sample-64", "sampling, batch 64, over transformers", 4, GENERATE),
    ratio("sample-mixed", "sampling, mixed lengths, over transformers", 4, GENERATE),
    memory("pretrain-a", "peak memory, pretraining a", 1100),
    memory("rm-pairs", "peak memory, reward model", 1600),
    memory("ppo", "peak memory, PPO", 1600),
    tokenizing(True, 5),
    tokenizing(False, 0.95),
    Goal("records", "rank2pairs, MB in a second of one core", 110, lambda x: f"{x:.0f} MB/s", rank2pairs),
    Goal(
        "records",
        "rank2pairs, peak memory",
        60,
        lambda x: f"{x:.0f} MB",
        rank2pairs_memory,
        least=False,
    ),
    Goal("startup", "slowest --help", 0.12, lambda x: f"{x:.3f} s", slowest_help, least=False),
    Goal(
        "startup",
        "slowest --help over import click",
        2.2,
        lambda x: f"{x:.2f} x",
        help_over_click,
        least=False,
    ),
)
