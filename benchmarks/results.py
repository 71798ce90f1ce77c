"""Measure the whole method: what PPO gains, when it over-optimises, what data and a second round bring.

    python -m benchmarks.results OUT_DIR [--only PART ...] [--data DIR] [--report docs/results.md]

Everything is a subprocess of the rlhfkit command line. A command whose output exists is skipped, so the
script can be stopped and started again; a part is measured anew when its OUT_DIR/PART.json is deleted (and
its runs with it, if the part has changed). OUT_DIR gets three projects of `rlhfkit init` (seed-1, seed-2,
seed-3), on which most parts build. The report holds what was measured, and names the parts that were not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.results_data import arithmetic_files, people_files
from benchmarks.results_place import GOLD, SAMPLE, Place, Result, final_kl, project
from benchmarks.results_report import write_report
from benchmarks.results_rounds import few_rounds, rounds

SEEDS = (1, 2, 3)
#: Student's t, 97.5%, by degrees of freedom
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def interval(values: Sequence[float]) -> Result:
    """Mean and 95% t-interval over seeds."""
    n = len(values)
    mean = sum(values) / n
    half = T975[n - 1] * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "seeds": n}


# -- the parts ----------------------------------------------------------------------------------------------


def winrate(out: Path) -> Result:
    """Win rates over SFT by the gold score, reward-model accuracy: three seeds of the demo."""
    seeds: Result = {}
    for seed in SEEDS:
        place = project(out, seed)
        summary, judge = place.read("run/winrate.json"), place.read("run/rm/eval.json")
        keys = ("win_rate", "ci_low", "ci_high", "prompts", "avg_length", "length_controlled_winrate")
        seeds[str(seed)] = {
            "models": {n: {k: row[k] for k in keys} for n, row in summary["models"].items()},
            "ppo_over_big": summary["head_to_head"]["ppo"]["big"]["win_rate"],
            "rm_accuracy": judge["accuracy"],
            "rm_accuracy_se": judge["accuracy_se"],
            "rm_pairs": judge["pairs"],
            "kl": final_kl(place, "run/ppo"),
        }
    names = [name for name in seeds["1"]["models"] if name != "sft"]
    over = {n: interval([s["models"][n]["win_rate"] for s in seeds.values()]) for n in names}
    accuracy = interval([s["rm_accuracy"] for s in seeds.values()])
    return {"seeds": seeds, "over_seeds": over, "rm_accuracy_over_seeds": accuracy}


def kl_sweep(out: Path) -> Result:
    """The KL coefficient against the gold win rate, 50 iterations each."""
    place = project(out, 1)
    rows = []
    for coef in ("0", "0.05", "0.2", "0.3", "0.5", "1", "2"):
        run = "run/ppo"  # the demo's own is the one with 0.3
        if coef != "0.3":
            run = place.ppo(f"run/more/kl-{coef}", "--steps", 50, "--kl-coef", coef)
        proxy = place.rows(f"{run}/metrics.jsonl")[-1]["objective/scorer"]
        rows.append({"kl_coef": float(coef), "kl": final_kl(place, run), "proxy": proxy, **place.duel(run)})
    return {"seed": 1, "iterations": 50, "rows": rows}


def over_optimisation(out: Path) -> Result:
    """Without a KL penalty: the learnt reward rises, the gold score of held-out prompts peaks and falls."""
    place = project(out, 1)
    watch = ("--eval", "data/valid.jsonl", "--eval-reward", GOLD, "--eval-every", 5)
    run = place.ppo("run/more/over-0", "--steps", 100, "--kl-coef", 0, *watch)
    rows = [r for r in place.rows(f"{run}/metrics.jsonl") if r.get("eval/scores") is not None]
    peak, last = max(rows, key=lambda r: r["eval/scores"]), rows[-1]
    error = math.hypot(peak["eval/scores_se"], last["eval/scores_se"])
    curves = ("-y", "objective/scorer", "-y", "eval/scores", "-y", "objective/kl")
    place.make("run/more/over-optimisation.png", "plot", f"{run}/metrics.jsonl", *curves)
    shutil.copyfile(place.directory / "run/more/over-optimisation.png", out / "over-optimisation.png")
    keys = {"step": "step", "proxy": "objective/scorer", "gold": "eval/scores", "gold_se": "eval/scores_se"}
    points = [{**{k: r[v] for k, v in keys.items()}, "kl": r["objective/kl"]} for r in rows]
    fall = peak["eval/scores"] - last["eval/scores"]
    sample = place.rows(f"{run}/samples.jsonl")[-1]
    return {
        "seed": 1,
        "points": points,
        "peak_step": peak["step"],
        "fall": fall,
        "fall_in_se": fall / error,
        "prompt": sample["prompt"].replace("\n", " "),
        "completion": sample["completion"],
    }


def rm_ladder(out: Path) -> Result:
    """Reward-model accuracy by the number of noisily labelled rankings, of six answers and of two."""
    place = project(out, 1)
    if not (out / "wide").exists():  # the same prompts as seed-1's, and as many again
        Place(out).run("init", "wide", "--seed", 1, "--scale", 2)
    ladder = place.directory / "run/more/ladder"
    ladder.mkdir(parents=True, exist_ok=True)
    prompts = (out / "wide/data/rank.jsonl").read_text().splitlines(keepends=True)[:10_000]
    (ladder / "prompts.jsonl").write_text("".join(prompts))
    base = "run/more/ladder"
    place.make(f"{base}/samples.jsonl", "sample", f"{base}/prompts.jsonl", "-m", "run/sft", "-n", 6, *SAMPLE)
    two = ({**row, "completions": row["completions"][:2]} for row in place.rows(f"{base}/samples.jsonl"))
    (ladder / "two-samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in two))
    labels = ("--by", GOLD, "--noise", 0.5, "--seed", 1)
    place.make(f"{base}/rankings.jsonl", "rank", f"{base}/samples.jsonl", *labels)
    place.make(f"{base}/two-rankings.jsonl", "rank", f"{base}/two-samples.jsonl", *labels)
    rows = []
    for answers, prefix in ((6, ""), (2, "two-")):
        lines = (ladder / f"{prefix}rankings.jsonl").read_text().splitlines(keepends=True)
        for size in (20, 100, 500, 2500, 10_000):
            name = f"{base}/{prefix}rm-{size}"
            (ladder / f"{prefix}{size}.jsonl").write_text("".join(lines[:size]))
            train = ("-m", "run/sft", "--epochs", 1, "--batch-size", 8, "--lr", 1e-3, "--seed", 1)
            place.make(name, "train-rm", f"{base}/{prefix}{size}.jsonl", *train, "--eval", "run/valid.jsonl")
            result = place.read(f"{name}/eval.json")
            keys = ("accuracy", "accuracy_se", "pairs")
            rows.append({"rankings": size, "answers": answers, **{k: result[k] for k in keys}})
    return {"seed": 1, "rows": rows}


#: coefficient and iterations
PTX = (("0.1", 50), ("0.3", 50), ("1", 50), ("0.2", 100), ("0.15", 200))


def ptx(out: Path) -> Result:
    """The pretraining loss on new text of base, SFT, PPO and PPO-ptx, and what ptx costs in win rate."""
    place = project(out, 1)
    if not (out / "new-text").exists():
        Place(out).run("init", "new-text", "--seed", 101, "--scale", 0.1)
    shard = "run/more/new-text.safetensors"
    place.make(shard, "tokenize", "../new-text/data/pretrain.jsonl", "--tokenizer", "run/tok")
    models = {("base", 0): "run/small", ("SFT", 0): "run/sft", ("PPO", 50): "run/ppo"}
    for steps, name in ((100, "long"), (200, "long-200")):
        models["PPO", steps] = place.ppo(f"run/more/{name}", "--steps", steps, "--kl-coef", 0.3)
    for coef, steps in PTX:
        mix = ("--ptx", "run/corpus.safetensors", "--ptx-coef", coef, "--ptx-batch-size", 16)
        run = f"run/more/ptx-{coef}-{steps}"
        models[f"PPO-ptx, {coef}", steps] = place.ppo(run, "--steps", steps, "--kl-coef", 0.3, *mix)
    rows = []
    for (name, steps), model in models.items():
        probe = f"run/more/loss/{model.replace('/', '-')}"
        # One step at rate 0 changes nothing: what is wanted is the loss on --eval.
        step = ("--steps", 1, "--lr", 0, "--batch-size", 1)
        place.make(probe, "pretrain", shard, "-m", model, *step, "--eval", shard)
        loss = next(r["eval/loss"] for r in place.rows(f"{probe}/metrics.jsonl") if "eval/loss" in r)
        kind = {"model": name, "iterations": steps, "loss": loss}
        rows.append({**kind, **({"kl": final_kl(place, model), **place.duel(model)} if steps else {})})
    return {"seed": 1, "rows": rows}


#: of PPO, from the same fine-tuned model
ARITHMETIC_SEEDS = (1, 2)


def arithmetic(out: Path) -> Result:
    """PPO with a verifying command as the reward: the final number behind ####, as in GSM8K."""
    place = Place(out / "arithmetic")
    if not place.directory.exists():
        arithmetic_files(place.directory, seed=1)
    verify = "cmd:python3 verify.py"
    # 256 bytes and the special tokens: every digit is a token of its own.
    place.make("tok", "train-tokenizer", "pretrain.jsonl", "--vocab-size", 261)
    place.make("corpus.safetensors", "tokenize", "pretrain.jsonl", "--tokenizer", "tok")
    shape = shlex.split("--layers 3 --hidden 64 --heads 4 --context 128 --tie-embeddings")
    train = ("--batch-size", 32, "--steps", 1100, "--lr", 6e-3, "--seed", 1)
    place.make("base", "pretrain", "corpus.safetensors", "--tokenizer", "tok", *shape, *train)
    tune = ("--epochs", 3, "--batch-size", 32, "--lr", 1e-3, "--seed", 1)
    place.make("sft", "sft", "sft.jsonl", "-m", "base", *tune)
    steps = shlex.split(
        "--steps 60 --batch-size 256 --minibatches 4 --lr 4e-4 --value-lr 1e-3 --warmup 5"
        " --ema-decay 0.95 --max-new-tokens 32 --kl-coef 0.01"
    )
    models = {"sft": "sft"}
    for seed in ARITHMETIC_SEEDS:
        name = f"ppo-{seed}"
        models[f"ppo, seed {seed}"] = name
        place.make(name, "ppo", "ppo.jsonl", "-m", "sft", "-r", verify, *steps, "--seed", seed)
    rows = []
    for words, model in models.items():
        for how, flags in (("greedy", ["--greedy"]), ("sampled", [])):
            answers = f"{model}-{how}.jsonl"
            draw = ("--max-new-tokens", 32, "--seed", 1, *flags)
            place.make(answers, "sample", "test.jsonl", "-m", model, *draw)
            place.make(f"scored-{answers}", "score", answers, "-r", verify)
            right = [row["score"] for row in place.rows(f"scored-{answers}")]
            rows.append({"model": words, "how": how, **wilson(sum(right), len(right))})
    return {"seed": 1, "rows": rows}


def wilson(successes: float, n: int) -> Result:
    """A rate with its 95% Wilson interval."""
    z, p = 1.96, successes / n
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return {"rate": p, "ci_low": (middle - spread) / scale, "ci_high": (middle + spread) / scale, "n": n}


def people(out: Path, data: Path) -> Result:
    """Reward models on real preferences, evaluated on other prompts, beside `the longer one wins`."""
    rows = []
    for name, file in (("harmless", "hh_harmless_pairs_train"), ("vicuna80", "rankings_vicuna80_train")):
        place = Place(out / name)
        if not place.directory.exists():
            people_files(data / f"{file}.jsonl", place.directory)
        place.make("tok", "train-tokenizer", "text.jsonl", "--vocab-size", 2000)
        place.make("corpus.safetensors", "tokenize", "text.jsonl", "--tokenizer", "tok")
        shape = shlex.split("--layers 3 --hidden 96 --heads 4 --context 768 --tie-embeddings")
        train = ("--batch-size", 4, "--epochs", 2, "--lr", 3e-3, "--seed", 1)
        place.make("base", "pretrain", "corpus.safetensors", "--tokenizer", "tok", *shape, *train)
        fit = ("--epochs", 2, "--batch-size", 16, "--lr", 3e-4, "--seed", 1)
        place.make("rm", "train-rm", "train.jsonl", "-m", "base", *fit, "--eval", "held-out.jsonl")
        result = place.read("rm/eval.json")
        keys = ("pairs", "comparisons", "accuracy", "accuracy_se")
        longer = result["length"]["longer_wins"]
        rows.append({"data": file, **{k: result[k] for k in keys}, "longer_wins": longer})
    return {"seed": 1, "rows": rows}


PARTS: dict[str, Callable[[Path], Result]] = {
    "winrate": winrate,
    "kl-sweep": kl_sweep,
    "over-optimisation": over_optimisation,
    "rm-ladder": rm_ladder,
    "ptx": ptx,
    "rounds": rounds,
    "few-rounds": few_rounds,
    "arithmetic": arithmetic,
}


def main() -> None:
    """Measure the parts that are asked for, then write the report over all that is there."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path, help="directory of the runs and of PART.json")
    parser.add_argument(
        "--only", nargs="+", choices=[*PARTS, "people", "none"], help="these parts (none: report)"
    )
    parser.add_argument(
        "--data", type=Path, help="directory of the real preferences; without: no part people"
    )
    parser.add_argument("--report", type=Path, default=Path(__file__).parent.parent / "docs" / "results.md")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.out.mkdir(parents=True, exist_ok=True)
    parts = dict(PARTS)
    if args.data is not None:
        parts["people"] = lambda out: people(out, args.data.resolve())
    for name, measure in parts.items():
        file = args.out / f"{name}.json"
        if (args.only is None or name in args.only) and not file.exists():
            file.write_text(json.dumps(measure(args.out.resolve()), indent=1) + "\n")
    write_report(args.out, args.report)


if __name__ == "__main__":
    main()
