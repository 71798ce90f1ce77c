"""A directory in which benchmarks/results.py runs the command line, and the demo's settings."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

RLHFKIT = [sys.executable, "-m", "rlhfkit"]
GOLD = "cmd:python3 gold.py"
SAMPLE = ("--max-new-tokens", "32", "--stop", "\\n", "--seed", "1")
#: the demo's PPO, without its length and its KL coefficient
PPO = shlex.split(
    "--batch-size 256 --minibatches 4 --lr 4e-4 --value-lr 1e-3 --warmup 5 --ema-decay 0.95"
    " --max-new-tokens 32 --seed 1"
)
#: length and coefficient of the demo's PPO
DEMO = ("--steps", 50, "--kl-coef", 0.3)
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
