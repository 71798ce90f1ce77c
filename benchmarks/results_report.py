"""Turns the JSON files of benchmarks/results.py into docs/results.md."""

from __future__ import annotations

import json
import os
import platform
import shutil
import textwrap
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

Result = dict[str, Any]

HEAD = """# Results

What the method does on the [generated world](world.md), on sums with a verifier, and on real preferences.
Written by

```sh
python -m benchmarks.results OUT_DIR --data DIR
```

which runs the command line only and reports what it measured. Win rates are by the gold score on 1,000 test
prompts that no stage has seen, ties counting half. Brackets are 95% intervals: bootstrap over prompts for a
win rate, Student's t over seeds where a mean over seeds is given, Wilson for success rates, "±" one
standard error. An interval over prompts does not hold the luck of a training run: look at the three seeds
below before reading much into a difference of two points between single runs.
"""


def rate(row: Result, key: str = "win_rate") -> str:
    """A rate with its interval, in percent."""
    return f"{100 * row[key]:.1f}% [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def winrate(result: Result) -> str:
    """Three seeds of the demo."""
    seeds = result["seeds"]
    names = {
        "small": "GPT, 0.1M",
        "small-prompted": "GPT, 0.1M, prompted",
        "big": "GPT, 1.05M",
        "big-prompted": "GPT, 1.05M, prompted",
        "ppo": "PPO, 0.1M",
    }
    rows = []
    for name, words in names.items():
        cells = [rate(s["models"][name]) for s in seeds.values()]
        rows.append([words, *cells, rate(result["over_seeds"][name], "mean")])
    even = [f"{100 * s['models']['ppo']['length_controlled_winrate']:.1f}%" for s in seeds.values()]
    rows.append(["PPO at equal length", *even, ""])
    rows.append(["PPO over GPT 1.05M", *(f"{100 * s['ppo_over_big']:.1f}%" for s in seeds.values()), ""])
    rows.append(["KL of PPO, nats", *(f"{s['kl']:.2f}" for s in seeds.values()), ""])
    judges = [f"{100 * s['rm_accuracy']:.1f}% ± {100 * s['rm_accuracy_se']:.1f}" for s in seeds.values()]
    rows.append(["reward model's accuracy", *judges, rate(result["rm_accuracy_over_seeds"], "mean")])
    return (
        "Win rate over the fine-tuned model (SFT, 0.1M) of the same seed: `rlhfkit init --seed N` and "
        "`make`.\n\n" + table(["model", *(f"seed {s}" for s in seeds), "mean over seeds"], rows)
    )


def kl_sweep(result: Result) -> str:
    """Coefficient against win rate."""
    rows = [[f"{r['kl_coef']:g}", f"{r['kl']:.2f}", f"{r['proxy']:.2f}", rate(r)] for r in result["rows"]]
    best = max(result["rows"], key=lambda r: r["win_rate"])
    inside = best not in (result["rows"][0], result["rows"][-1])
    return (
        f"Seed {result['seed']}, {result['iterations']} iterations each. The gold win rate is highest at "
        f"{best['kl_coef']:g}{', and lower on both sides of it' if inside else ''}.\n\n"
        + table(["KL coefficient", "final KL, nats", "learnt reward", "gold win rate over SFT"], rows)
    )


def over_optimisation(result: Result) -> str:
    """Coefficient 0 over iterations."""
    points = result["points"]
    peak = next(p for p in points if p["step"] == result["peak_step"])
    last = points[-1]
    shown = [p for p in points if p["step"] in (5, 10, 15, 20, 30, 40, 60, 80, 100)]
    rows = [
        [str(p["step"]), f"{p['kl']:.1f}", f"{p['proxy']:.2f}", f"{p['gold']:.2f} ± {p['gold_se']:.2f}"]
        for p in shown
    ]
    return (
        f"Seed {result['seed']}, KL coefficient 0, {last['step']} iterations. The learnt reward goes from "
        f"{points[0]['proxy']:.2f} at step {points[0]['step']} to {last['proxy']:.2f}; the gold score of 500 "
        f"held-out prompts peaks at step {peak['step']} with {peak['gold']:.2f} and ends at "
        f"{last['gold']:.2f}, {result['fall_in_se']:.1f} standard errors of the difference lower. The gold "
        "score is of the averaged weights (`--ema-decay 0.95`), so it lags by some 5 iterations. The "
        f"last answer in `samples.jsonl`, to `{result['prompt']}`: `{result['completion'].strip()}`\n\n"
        + table(["iteration", "KL, nats", "learnt reward", "gold score"], rows)
        + "\n![over-optimisation](over-optimisation.png)\n"
    )


def rm_ladder(result: Result) -> str:
    """Accuracy by data."""
    rows = [
        [f"{r['rankings']:,}", f"{100 * r['accuracy']:.1f}% ± {100 * r['accuracy_se']:.1f}"]
        for r in result["rows"]
    ]
    return (
        f"Seed {result['seed']}; rankings of six answers with noisy labels (scale 0.5); one epoch, 8 "
        "rankings a step, so that more data also means more steps. Accuracy is on "
        f"{result['rows'][0]['pairs']:,} pairs of held-out prompts in the order of the gold score, standard "
        "error clustered by prompt. All start from the fine-tuned model, and a ranking is up to 15 pairs.\n\n"
        + table(["rankings", "accuracy"], rows)
    )


def ptx(result: Result) -> str:
    """Pretraining loss."""
    base = result["rows"][0]["loss"]
    rows = [
        [r["model"], f"{r['loss']:.3f}", f"{r['loss'] - base:+.3f}", rate(r) if "win_rate" in r else ""]
        for r in result["rows"]
    ]
    return (
        f"Seed {result['seed']}, the demo's PPO (KL coefficient 0.3, 50 iterations), without and with "
        "`--ptx run/corpus.safetensors --ptx-coef G --ptx-batch-size 16`. Loss in nats per token on text of "
        "another seed of the generator. A likely reason for the price in win rate: most pretraining "
        "documents answer badly, and a document's first question looks just like a prompt.\n\n"
        + table(["model", "pretraining loss", "above base", "gold win rate over SFT"], rows)
    )


def rounds(result: Result) -> str:
    """A second round."""
    rows = [
        [r["run"], rate(r["over_sft"]), rate(r["over_round_1"]) if r["over_round_1"] else ""]
        for r in result["rows"]
    ]
    judges = result["rm_on_new_samples"]
    return (
        f"Seed {result['seed']}; what a round is: [rounds](rounds.md). Each has 6,000 rankings of its own "
        "and 50 iterations of PPO with KL coefficient 0.3, from SFT or continued from round 1's policy; the "
        "second reward model learns from both rounds' rankings, so round 2 has seen twice the labels.\n\n"
        + table(["run", "gold win rate over SFT", "gold win rate over round 1"], rows)
        + "\nOn six samples of round 1's policy for each of 500 held-out prompts, the first reward model "
        f"orders {100 * judges['old']:.1f}% of the pairs as the gold score does, the second one "
        f"{100 * judges['new']:.1f}%.\n"
    )


def arithmetic(result: Result) -> str:
    """Success rates."""
    rows = [[r["model"].upper(), r["how"], rate(r, "rate")] for r in result["rows"]]
    return (
        "Sums and differences of numbers up to 60, with the answer behind `####` as in GSM8K. The model is "
        "pretrained from scratch on answers of which 30% are wrong and fine-tuned on ones of which 10% are; "
        "PPO's only reward is `cmd:python3 verify.py`: 1 for the right final number, else 0. Success on "
        f"{result['rows'][0]['n']:,} questions that are in no training file, one answer each.\n\n"
        + table(["model", "decoding", "right"], rows)
    )


def people(result: Result) -> str:
    """Real preferences."""
    rows = [
        [
            f"`{r['data']}`",
            f"{r['comparisons']:,}",
            f"{r['pairs']:,}",
            f"{100 * r['accuracy']:.1f}% [{100 * (r['accuracy'] - 1.96 * r['accuracy_se']):.1f}, "
            f"{100 * (r['accuracy'] + 1.96 * r['accuracy_se']):.1f}]",
            f"{100 * r['longer_wins']:.1f}%",
        ]
        for r in result["rows"]
    ]
    return (
        "Reward models of about half a million parameters, pretrained from scratch on the very texts of the "
        "training part: two thirds of the prompts, by a hash of the first message. Evaluated on the other "
        "third. Models of this size know next to no English: an accuracy near one half is what is to be "
        "expected, and says nothing about the loss, which the generated world tests. Intervals are clustered "
        "by record (of `rankings_vicuna80`, three records share a prompt).\n\n"
        + table(["data", "held-out records", "pairs", "accuracy", "the longer one wins"], rows)
    )


SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "winrate": ("PPO against SFT, three seeds", winrate),
    "kl-sweep": ("KL coefficient", kl_sweep),
    "over-optimisation": ("Over-optimisation", over_optimisation),
    "rm-ladder": ("Reward model by number of rankings", rm_ladder),
    "ptx": ("PPO-ptx", ptx),
    "rounds": ("A second round", rounds),
    "arithmetic": ("A verifying command as the reward", arithmetic),
    "people": ("Real preferences", people),
}


def goals(parts: dict[str, Result]) -> str:
    """What was hoped for, and whether these figures show it."""
    rows: list[tuple[str, bool]] = []
    if "winrate" in parts:
        ppo = [s["models"]["ppo"] for s in parts["winrate"]["seeds"].values()]
        rows.append(("PPO beats SFT in every seed, intervals above 50%", all(r["ci_low"] > 0.5 for r in ppo)))
    if "kl-sweep" in parts:
        sweep = parts["kl-sweep"]["rows"]
        best = max(sweep, key=lambda r: r["win_rate"])
        sides = [any(r["ci_high"] < best["ci_low"] for r in side) for side in _sides(sweep, best)]
        rows.append(("A lower KL coefficient than the best is worse, with disjoint intervals", sides[0]))
        rows.append(("A higher one is worse, with disjoint intervals", sides[1]))
    if "over-optimisation" in parts:
        enough = parts["over-optimisation"]["fall_in_se"] >= 2
        rows.append(("Without a penalty the gold score falls from its peak by two standard errors", enough))
    if "rm-ladder" in parts:
        ladder = {r["rankings"]: r["accuracy"] for r in parts["rm-ladder"]["rows"]}
        rows.append(("500 rankings leave the reward model near chance (below 60%)", ladder[500] < 0.6))
        rows.append(("10,000 rankings bring it to 70%", ladder[10_000] >= 0.7))
    if "ptx" in parts:
        base, ppo_row = (parts["ptx"]["rows"][i] for i in (0, 2))
        mixed = parts["ptx"]["rows"][3:]
        cheap = [r for r in mixed if r["loss"] - base["loss"] <= 0.2]
        rows.append(("PPO-ptx is within 0.2 nats of the base on pretraining text", bool(cheap)))
        even = any(r["win_rate"] >= ppo_row["ci_low"] for r in cheap)
        rows.append(("... at a win rate within the interval of plain PPO", even))
    if "rounds" in parts:
        second = parts["rounds"]["rows"][1:]
        rows.append(
            ("A second round beats the first", any(r["over_round_1"]["ci_low"] > 0.5 for r in second))
        )
    if "arithmetic" in parts:
        rates = {(r["model"], r["how"]): r for r in parts["arithmetic"]["rows"]}
        better = rates["ppo", "sampled"]["ci_low"] > rates["sft", "sampled"]["ci_high"]
        rows.append(("A verifier as reward raises the success of sampled answers, intervals apart", better))
    return table(["hoped for", "shown"], [[words, "yes" if shown else "**no**"] for words, shown in rows])


def unfinished(parts: dict[str, Result]) -> list[str]:
    """Runs that the script makes but that the figures of a part do not hold yet."""
    wanted = {
        "kl-sweep": ("kl_coef", 2.0, "KL coefficient 2"),
        "ptx": ("model", "PPO-ptx, 0.1", "PPO-ptx with coefficient 0.1"),
        "rounds": ("run", "round 2, continued", "Round 2 continued from round 1's policy"),
    }
    return [
        f"- {words} (delete `{part}.json`, `--only {part}`)"
        for part, (key, value, words) in wanted.items()
        if part in parts and value not in [row[key] for row in parts[part]["rows"]]
    ]


def _sides(rows: list[Result], best: Result) -> tuple[list[Result], list[Result]]:
    at = rows.index(best)
    return rows[:at], rows[at + 1 :]


def write_report(out: Path, report: Path) -> None:
    """Write the report over the parts that were measured, and their picture beside it."""
    files = {name: out / f"{name}.json" for name in SECTIONS}
    parts = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    text, missing = [HEAD, f"## What it shows, and what not\n\n{goals(parts)}"], []
    for name, (title, section) in SECTIONS.items():
        if name in parts:
            text.append(f"## {title}\n\n{section(parts[name])}")
        else:
            missing.append(f"- {title} (`--only {name}`)")
    missing += unfinished(parts)
    if missing:
        text.append("## Not measured yet\n\n" + "\n".join(missing) + "\n")
    text.append(
        f"## Where\n\n{date.today():%d %B %Y}; {processor()}, {os.cpu_count()} cores shared with other "
        f"work, one "
        f"thread a process; Python {platform.python_version()}, torch {version('torch')}. Seeds of the "
        f"projects "
        "are named above; every command got `--seed` explicitly. Another processor or torch rounds "
        "otherwise, "
        "and a run of PPO may then end elsewhere within the spread of the seeds.\n"
    )
    report.write_text("\n".join(map(wrap, text)), encoding="utf-8")
    picture = out / "over-optimisation.png"
    if picture.exists():
        shutil.copyfile(picture, report.parent / picture.name)


def wrap(text: str) -> str:
    """Paragraphs of prose at 110 columns; tables, headings and code as they are."""
    blocks = text.split("\n\n")
    return "\n\n".join(b if b[:1] in "#|`!-" or "\n" in b.strip() else _fill(b) for b in blocks)


def _fill(block: str) -> str:
    return textwrap.fill(block, 110, break_long_words=False, break_on_hyphens=False) + "\n" * block.endswith(
        "\n"
    )


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )
