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
    cells = {
        (r["rankings"], r["answers"]): f"{100 * r['accuracy']:.1f}% ± {100 * r['accuracy_se']:.1f}"
        for r in result["rows"]
    }
    sizes = sorted({size for size, _ in cells})
    rows = [[f"{size:,}", cells[size, 6], cells[size, 2]] for size in sizes]
    return (
        f"Seed {result['seed']}; noisy labels (scale 0.5), of all six answers to a prompt or of the first "
        "two of them; one epoch, 8 rankings a step, so that more data also means more steps. Accuracy is on "
        f"{result['rows'][0]['pairs']:,} pairs of held-out prompts in the order of the gold score, standard "
        "error clustered by prompt. All start from the fine-tuned model. A ranking of six is up to 15 pairs, "
        "one of two is a single one.\n\n" + table(["rankings", "of six answers", "of two answers"], rows)
    )


def ptx(result: Result) -> str:
    """Pretraining loss."""
    base = result["rows"][0]["loss"]
    rows = [
        [
            r["model"],
            str(r["iterations"] or ""),
            f"{r['loss']:.3f}",
            f"{r['loss'] - base:+.3f}",
            *([f"{r['kl']:.2f}", rate(r)] if "kl" in r else ["", ""]),
        ]
        for r in result["rows"]
    ]
    head = ["model", "iterations", "pretraining loss", "above base", "KL, nats", "gold win rate over SFT"]
    return (
        f"Seed {result['seed']}, the demo's PPO (KL coefficient 0.3), without and with "
        "`--ptx run/corpus.safetensors --ptx-coef G --ptx-batch-size 16`. Loss in nats per token on text of "
        "another seed of the generator. A likely reason for the price in win rate: most pretraining "
        "documents answer badly, and a document's first question looks just like a prompt. A small "
        "coefficient over more iterations pays it back.\n\n" + table(head, rows)
    )


def rounds(result: Result) -> str:
    """A second round."""
    keys = ("over_sft", "over_round_1", "over_longer")
    rows = [
        [r["run"], f"{r['kl']:.2f}", *(rate(r[key]) if r[key] else "" for key in keys)]
        for r in result["rows"]
    ]
    judges = [
        [name, f"{100 * accuracy:.1f}%"] for name, accuracy in result["accuracy_on_new_samples"].items()
    ]
    made = "; ".join(f"seed {r['seed']}: {rate(r)}, KL {r['kl']:.2f}" for r in result["made"])
    head = ["run", "KL, nats", "over SFT", "over round 1", "over round 1, 100 iterations"]
    return (
        f"Seed {result['seed']}; what a round is: [rounds](rounds.md). Each has 6,000 rankings of its own "
        "and, where nothing else is said, 50 iterations of PPO with KL coefficient 0.3, from SFT or "
        "continued from round 1's policy (100 in all). KL is to SFT throughout. Round 2's reward models "
        "learn from both rounds' rankings, twice the labels; the rows of round 1 below the first tell what "
        "longer PPO or a bigger reward model alone would have brought, and the last row what a reward model "
        "without any error would. Reward models of 1.05M take one epoch.\n\n"
        + table(head, rows)
        + "\nThe interval of a single row is no correction for having tried three variants; and a round that "
        "continues has had twice the iterations, so the last column is the fair one.\n"
        + "\nPairs among six samples of round 1's policy for each of 500 held-out prompts that a reward "
        "model orders as the gold score does:\n\n"
        + table(["reward model", "accuracy on the new samples"], judges)
        + "\nIn the demo of another seed, `make round2` (reward model of 0.1M, continued from round 1's "
        f"policy) has a win rate over round 1 of: {made}.\n"
    )


def few_rounds(result: Result) -> str:
    """Two rounds with few rankings."""
    rows = [
        [
            str(r["seed"]),
            r["labels"],
            f"{100 * r['accuracy']:.1f}% ± {100 * r['accuracy_se']:.1f}",
            f"{r['kl']:.2f}",
            *(rate(r[key]) if r.get(key) else "" for key in ("over_sft", "over_round_1", "over_control")),
        ]
        for r in result["rows"]
    ]
    head = [
        "seed",
        "rankings",
        "reward model's accuracy",
        "KL, nats",
        "over SFT",
        "over round 1",
        "over 1,000",
    ]
    return (
        "As above with 500 rankings a round, of different prompts, and a reward model of 0.1M that takes two "
        "epochs of them, 8 rankings a step. Every PPO has 50 iterations from SFT, KL coefficient 0.3. The "
        "row between the rounds has as many labels as round 2, all for answers of SFT; the last column is "
        "against its policy. Accuracy is on held-out answers of SFT.\n\n" + table(head, rows)
    )


def arithmetic(result: Result) -> str:
    """Success rates."""
    rows = [
        [r["model"].replace("sft", "SFT").replace("ppo", "PPO"), r["how"], rate(r, "rate")]
        for r in result["rows"]
    ]
    return (
        "Sums of two numbers from 1 to 99 in a sentence, with the answer behind `####` as in GSM8K: `Q: Dan "
        "has 53 figs and gets 38 more. How many figs? A: 53 + 38 = 91 #### 91`. The model (0.2M) is "
        "pretrained from scratch on bare sums and such questions and fine-tuned on 2,000 demonstrations; a "
        "tenth of all sums in both is wrong. Its pretraining (1,100 steps) was chosen so that it can add in "
        "part only. PPO (60 iterations "
        "of 256 episodes, KL coefficient 0.01) starts from it; the only reward is `cmd:python3 verify.py`: 1 "
        "for the right final number, else 0. Success on "
        f"{result['rows'][0]['n']:,} questions whose sums (in this order of the numbers) are in no training "
        "file, one answer each.\n\n" + table(["model", "decoding", "right"], rows)
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
    "few-rounds": ("A second round with few rankings", few_rounds),
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
        ladder = {(r["rankings"], r["answers"]): r["accuracy"] for r in parts["rm-ladder"]["rows"]}
        for answers, words in ((6, "six"), (2, "two")):
            low, high = ladder[500, answers] < 0.6, ladder[10_000, answers] >= 0.7
            rows.append((f"500 rankings of {words} leave the reward model near chance (below 60%)", low))
            rows.append((f"10,000 rankings of {words} bring it to 70%", high))
    if "ptx" in parts:
        base, plain = (
            parts["ptx"]["rows"][0],
            {r["iterations"]: r for r in parts["ptx"]["rows"] if r["model"] == "PPO"},
        )
        cheap = [
            r
            for r in parts["ptx"]["rows"]
            if r["model"].startswith("PPO-ptx") and r["loss"] - base["loss"] <= 0.2
        ]
        rows.append(("PPO-ptx is within 0.2 nats of the base on pretraining text", bool(cheap)))
        even = any(r["win_rate"] >= plain[r["iterations"]]["ci_low"] for r in cheap)
        rows.append(("... at a win rate within the interval of plain PPO of as many iterations", even))
    if "rounds" in parts:
        second = [r for r in parts["rounds"]["rows"] if r["over_longer"]]
        fresh = any(r["over_round_1"]["ci_low"] > 0.5 for r in second if "from SFT" in r["run"])
        rows.append(("A second round from SFT beats the first, interval above 50%", fresh))
        more = [r for r in second if "continued" in r["run"]]
        for key, words in (("over_round_1", "the first"), ("over_longer", "the first run twice as long")):
            beats = all(r[key]["ci_low"] > 0.5 for r in more)
            rows.append((f"One continued from the first beats {words}, interval above 50%", beats))
    if "few-rounds" in parts:
        second = [r for r in parts["few-rounds"]["rows"] if r["round"] == "2"]
        for key, words in (
            ("over_round_1", "the first"),
            ("over_control", "as many rankings of SFT's answers"),
        ):
            beats = all(r[key]["ci_low"] > 0.5 for r in second)
            rows.append((f"With 500 rankings a round, the second beats {words} in every seed", beats))
    if "arithmetic" in parts:
        rates = {(r["model"], r["how"]): r for r in parts["arithmetic"]["rows"]}
        for how in ("sampled", "greedy"):
            least = min(r["ci_low"] for (model, kind), r in rates.items() if model != "sft" and kind == how)
            better = least > rates["sft", how]["ci_high"]
            words = f"A verifier as reward raises the success of {how} answers in every run, intervals apart"
            rows.append((words, better))
    return table(["hoped for", "shown"], [[words, "yes" if shown else "**no**"] for words, shown in rows])


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
