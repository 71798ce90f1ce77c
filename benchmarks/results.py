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
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_data import arithmetic_files, people_files
from benchmarks.results_report import write_report

RLHFKIT = [sys.executable, "-m", "rlhfkit"]
GOLD = "cmd:python3 gold.py"
SEEDS = (1, 2, 3)
SAMPLE = ("--max-new-tokens", "32", "--stop", "\\n", "--seed", "1")
#: the demo's PPO, without its length and its KL coefficient
PPO = shlex.split(
    "--batch-size 256 --minibatches 4 --lr 4e-4 --value-lr 1e-3 --warmup 5 --ema-decay 0.95"
    " --max-new-tokens 32 --seed 1"
)
#: Student's t, 97.5%, by degrees of freedom
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
Result = dict[str, Any]


class Place:
    """A directory in which rlhfkit is run; names of files are relative to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *args: object, stdin: str | None = None) -> str:
        """Run rlhfkit; returns its standard output. Ends the script when the command fails."""
        command = [str(a) for a in args]
        print(f"[{self.directory.name}] rlhfkit {shlex.join(command)}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [*RLHFKIT, *command], cwd=self.directory, input=stdin, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"exit {done.returncode}: rlhfkit {shlex.join(command)}")
        return done.stdout

    def make(self, output: str, *args: object) -> Path:
        """Run rlhfkit with -o output unless that is there: a file, or a directory with a run.json."""
        path = self.directory / output
        if not (path / "run.json" if path.is_dir() else path).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.run(*args, "-o", output)
        return path

    def read(self, file: str) -> Any:
        """A JSON file of this directory."""
        return json.loads((self.directory / file).read_text(encoding="utf-8"))

    def rows(self, file: str) -> list[Result]:
        """The records of a JSON lines file of this directory."""
        text = (self.directory / file).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def ppo(self, output: str, *flags: object, model: str = "run/sft", reward: str = "run/rm") -> str:
        """The demo's PPO with other flags; returns output."""
        self.make(output, "ppo", "data/ppo.jsonl", "-m", model, "-r", reward, *PPO, *flags)
        return output

    def answers(self, model: str) -> str:
        """The file of a model's answers to the test prompts."""
        output = f"run/more/answers/{model.replace('/', '-')}.jsonl"
        name = model.replace("/", "-")
        self.make(output, "sample", "data/test.jsonl", "-m", model, *SAMPLE, "--name", name)
        return output

    def duel(self, model: str, against: str = "run/sft") -> Result:
        """The gold win rate of one model over another on the test prompts."""
        a, b = model.replace("/", "-"), against.replace("/", "-")
        output = f"run/more/duels/{a}-over-{b}.json"
        files = (self.answers(against), self.answers(model))
        self.make(output, "eval-winrate", *files, "--judge", GOLD, "--baseline", b, "--seed", 1)
        row = self.read(output)["models"][a]
        return {key: row[key] for key in ("win_rate", "ci_low", "ci_high", "standard_error", "prompts")}


def project(out: Path, seed: int) -> Place:
    """The demo of a seed, made by `rlhfkit init` and `make` unless it is there."""
    place = Place(out / f"seed-{seed}")
    if not (place.directory / "Makefile").exists():
        Place(out).run("init", f"seed-{seed}", "--seed", seed)
    if not (place.directory / "report.md").exists():
        command = ["make", "-j2", f"RLHFKIT={shlex.join(RLHFKIT)}"]
        subprocess.run(command, cwd=place.directory, check=True, stdout=sys.stderr)
    return place


def final_kl(place: Place, run: str) -> float:
    """KL to the fine-tuned model, nats per response, mean of a run's last five iterations."""
    last = place.rows(f"{run}/metrics.jsonl")[-5:]
    return float(sum(row["objective/kl"] for row in last) / len(last))


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
    for coef in ("0", "0.05", "0.2", "0.3", "0.5", "2"):
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
    """Reward-model accuracy by the number of rankings, of six answers each, all noisily labelled."""
    place = project(out, 1)
    if not (out / "wide").exists():  # the same prompts as seed-1's, and as many again
        Place(out).run("init", "wide", "--seed", 1, "--scale", 2)
    ladder = place.directory / "run/more/ladder"
    ladder.mkdir(parents=True, exist_ok=True)
    prompts = (out / "wide/data/rank.jsonl").read_text().splitlines(keepends=True)[:10_000]
    (ladder / "prompts.jsonl").write_text("".join(prompts))
    base = "run/more/ladder"
    place.make(f"{base}/samples.jsonl", "sample", f"{base}/prompts.jsonl", "-m", "run/sft", "-n", 6, *SAMPLE)
    labels = ("--by", GOLD, "--noise", 0.5, "--seed", 1)
    ranked = place.make(f"{base}/rankings.jsonl", "rank", f"{base}/samples.jsonl", *labels)
    lines = ranked.read_text().splitlines(keepends=True)
    rows = []
    for size in (20, 100, 500, 2500, 10_000):
        (ladder / f"{size}.jsonl").write_text("".join(lines[:size]))
        train = ("-m", "run/sft", "--epochs", 1, "--batch-size", 8, "--lr", 1e-3, "--seed", 1)
        evaluate = ("--eval", "run/valid.jsonl")
        place.make(f"{base}/rm-{size}", "train-rm", f"{base}/{size}.jsonl", *train, *evaluate)
        result = place.read(f"{base}/rm-{size}/eval.json")
        rows.append({"rankings": size, **{k: result[k] for k in ("accuracy", "accuracy_se", "pairs")}})
    return {"seed": 1, "rows": rows}


def ptx(out: Path) -> Result:
    """The pretraining loss on new text of base, SFT, PPO and PPO-ptx, and what ptx costs in win rate."""
    place = project(out, 1)
    if not (out / "new-text").exists():
        Place(out).run("init", "new-text", "--seed", 101, "--scale", 0.1)
    shard = "run/more/new-text.safetensors"
    place.make(shard, "tokenize", "../new-text/data/pretrain.jsonl", "--tokenizer", "run/tok")
    models = {"base": "run/small", "SFT": "run/sft", "PPO": "run/ppo"}
    for coef in ("1", "0.1"):
        mix = ("--ptx", "run/corpus.safetensors", "--ptx-coef", coef, "--ptx-batch-size", 16)
        models[f"PPO-ptx, {coef}"] = place.ppo(f"run/more/ptx-{coef}", *DEMO, *mix)
    rows = []
    for name, model in models.items():
        probe = f"run/more/loss/{model.replace('/', '-')}"
        # One step at rate 0 changes nothing: what is wanted is the loss on --eval.
        step = ("--steps", 1, "--lr", 0, "--batch-size", 1)
        place.make(probe, "pretrain", shard, "-m", model, *step, "--eval", shard)
        loss = next(r["eval/loss"] for r in place.rows(f"{probe}/metrics.jsonl") if "eval/loss" in r)
        rows.append({"model": name, "loss": loss, **(place.duel(model) if "PPO" in name else {})})
    return {"seed": 1, "rows": rows}


#: length and coefficient of the demo's PPO
DEMO = ("--steps", 50, "--kl-coef", 0.3)


def rounds(out: Path) -> Result:
    """A second round (docs/rounds.md) against the first, and against more of the first."""
    place = project(out, 1)
    first, base = "run/ppo", "run/more/round2"
    place.make(f"{base}/samples.jsonl", "sample", "data/rank.jsonl", "-m", first, "-n", 6, *SAMPLE)
    labels = ("--by", GOLD, "--noise", 0.5, "--seed", 2)
    place.make(f"{base}/rankings.jsonl", "rank", f"{base}/samples.jsonl", *labels)
    place.make(f"{base}/valid-samples.jsonl", "sample", "data/valid.jsonl", "-m", first, "-n", 6, *SAMPLE)
    place.make(f"{base}/valid.jsonl", "rank", f"{base}/valid-samples.jsonl", "--by", GOLD)
    # One epoch of the union: as many steps as the first reward model had.
    train = ("-m", "run/sft", "--epochs", 1, "--batch-size", 16, "--lr", 1e-3, "--seed", 1)
    check = ("--center-on", "data/sft.jsonl", "--eval", f"{base}/valid.jsonl")
    place.make(f"{base}/rm", "train-rm", "run/rankings.jsonl", f"{base}/rankings.jsonl", *train, *check)
    place.make(f"{base}/old-scores.jsonl", "score", f"{base}/valid.jsonl", "-r", "run/rm")
    continued = {"model": first, "reward": f"{base}/rm"}
    from_ppo = (*DEMO, "--ref", "run/sft")
    runs = {
        "round 2, from SFT": place.ppo(f"{base}/restarted", *DEMO, reward=f"{base}/rm"),
        "round 2, continued": place.ppo(f"{base}/continued", *from_ppo, **continued),
    }
    rows = [{"run": "round 1", "over_sft": place.duel(first), "over_round_1": None}]
    for name, run in runs.items():
        rows.append({"run": name, "over_sft": place.duel(run), "over_round_1": place.duel(run, first)})
    truth, learnt = place.rows(f"{base}/valid.jsonl"), place.rows(f"{base}/old-scores.jsonl")
    old, new = pair_accuracy(truth, learnt), place.read(f"{base}/rm/eval.json")["accuracy"]
    return {"seed": 1, "rows": rows, "rm_on_new_samples": {"old": old, "new": new}}


def pair_accuracy(truth: list[Result], learnt: list[Result]) -> float:
    """Share of the pairs with unequal true scores that the learnt scores put in the same order."""
    right = pairs = 0.0
    for a, b in zip(truth, learnt, strict=True):
        true, other = ([c["score"] for c in row["completions"]] for row in (a, b))
        for i in range(len(true)):
            for j in range(len(true)):
                if true[i] > true[j]:
                    pairs += 1
                    right += 1.0 if other[i] > other[j] else 0.5 if other[i] == other[j] else 0.0
    return right / pairs


def arithmetic(out: Path) -> Result:
    """PPO with a verifying command as the reward: the final number behind ####, as in GSM8K."""
    place = Place(out / "arithmetic")
    if not place.directory.exists():
        arithmetic_files(place.directory, seed=1)
    verify = "cmd:python3 verify.py"
    place.make("tok", "train-tokenizer", "pretrain.jsonl", "--vocab-size", 320)
    place.make("corpus.safetensors", "tokenize", "pretrain.jsonl", "--tokenizer", "tok")
    shape = shlex.split("--layers 3 --hidden 64 --heads 4 --context 96 --tie-embeddings")
    train = ("--batch-size", 32, "--steps", 300, "--lr", 8e-3, "--seed", 1)
    place.make("base", "pretrain", "corpus.safetensors", "--tokenizer", "tok", *shape, *train)
    tune = ("--epochs", 6, "--batch-size", 32, "--lr", 2e-3, "--seed", 1)
    place.make("sft", "sft", "sft.jsonl", "-m", "base", *tune)
    steps = shlex.split(
        "--steps 40 --batch-size 256 --minibatches 4 --lr 4e-4 --value-lr 1e-3 --warmup 5"
        " --ema-decay 0.95 --max-new-tokens 12 --kl-coef 0.01 --seed 1"
    )
    place.make("ppo", "ppo", "ppo.jsonl", "-m", "sft", "-r", verify, *steps)
    rows = []
    for model in ("sft", "ppo"):
        for how, flags in (("greedy", ["--greedy"]), ("sampled", [])):
            answers = f"{model}-{how}.jsonl"
            draw = ("--max-new-tokens", 12, "--seed", 1, *flags)
            place.make(answers, "sample", "test.jsonl", "-m", model, *draw)
            place.make(f"scored-{answers}", "score", answers, "-r", verify)
            right = [row["score"] for row in place.rows(f"scored-{answers}")]
            rows.append({"model": model, "how": how, **wilson(sum(right), len(right))})
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
