"""The second round (docs/rounds.md) for benchmarks/results.py."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.results_place import DEMO, GOLD, RLHFKIT, SAMPLE, Place, Result, final_kl, project

#: seeds of the demo in which `make round2` is run as well
SECOND_ROUNDS = (2,)
#: seeds of the demo with two rounds of few rankings
FEW_SEEDS = (1, 2)
#: reward models of a million parameters: one epoch
BIG_RM = ("--epochs", 1, "--batch-size", 16, "--lr", 5e-4, "--seed", 1)


def rounds(out: Path) -> Result:
    """A second round (docs/rounds.md) against the first, longer PPO and a bigger reward model alone."""
    place = project(out, 1)
    first, longer, base = "run/ppo", "run/more/long", "run/more/round2"
    old, new, valid = "run/rankings.jsonl", f"{base}/rankings.jsonl", f"{base}/valid.jsonl"
    place.make(f"{base}/samples.jsonl", "sample", "data/rank.jsonl", "-m", first, "-n", 6, *SAMPLE)
    place.make(new, "rank", f"{base}/samples.jsonl", "--by", GOLD, "--noise", 0.5, "--seed", 2)
    place.make(f"{base}/valid-samples.jsonl", "sample", "data/valid.jsonl", "-m", first, "-n", 6, *SAMPLE)
    place.make(valid, "rank", f"{base}/valid-samples.jsonl", "--by", GOLD)
    tune = ("--epochs", 4, "--batch-size", 32, "--lr", 1e-3, "--seed", 1)
    place.make(f"{base}/big-sft", "sft", "data/sft.jsonl", "-m", "run/big", *tune)
    check = ("--center-on", "data/sft.jsonl", "--eval", valid)
    # One epoch of the union: as many steps as the first reward model had.
    small = ("--epochs", 1, "--batch-size", 16, "--lr", 1e-3, "--seed", 1)
    place.make(f"{base}/rm", "train-rm", old, new, "-m", "run/sft", *small, *check)
    place.make(f"{base}/big-rm-1", "train-rm", old, "-m", f"{base}/big-sft", *BIG_RM, *check)
    place.make(f"{base}/big-rm", "train-rm", old, new, "-m", f"{base}/big-sft", *BIG_RM, *check)
    judges = {"0.1M, round 1": "run/rm", "0.1M, both rounds": f"{base}/rm"}
    judges |= {"1.05M, round 1": f"{base}/big-rm-1", "1.05M, both rounds": f"{base}/big-rm"}
    accuracy = {}
    for name, judge in judges.items():
        scores = f"{base}/scores-{judge.replace('/', '-')}.jsonl"
        place.make(scores, "score", valid, "-r", judge)
        accuracy[name] = pair_accuracy(place.rows(valid), place.rows(scores))
    # The value network stays as small as the policy whatever the reward model's size.
    small_value = (*DEMO, "--value-model", "policy")
    again = (*small_value, "--ref", "run/sft")
    place.ppo(longer, "--steps", 100, "--kl-coef", 0.3)
    runs = {
        "round 1": first,
        "round 1, 100 iterations": longer,
        "round 1, reward model of 1.05M": place.ppo(f"{base}/big-1", *small_value, reward=f"{base}/big-rm-1"),
        "round 2, from SFT": place.ppo(f"{base}/restarted", *DEMO, reward=f"{base}/rm"),
        "round 2, reward model of 1.05M, from SFT": place.ppo(
            f"{base}/big-restarted", *small_value, reward=f"{base}/big-rm"
        ),
        "round 2, reward model of 1.05M, continued": place.ppo(
            f"{base}/big-continued", *again, model=first, reward=f"{base}/big-rm"
        ),
        "the gold score as the reward": place.ppo(f"{base}/gold", *small_value, reward=GOLD),
    }
    rows: list[Result] = []
    for name, run in runs.items():
        over = {"over_sft": place.duel(run), "over_round_1": place.duel(run, first) if run != first else None}
        over["over_longer"] = place.duel(run, longer) if name.startswith("round 2") else None
        rows.append({"run": name, "kl": final_kl(place, run), **over})
    made = [{"seed": seed, **second_round(out, seed)} for seed in SECOND_ROUNDS]
    return {"seed": 1, "rows": rows, "accuracy_on_new_samples": accuracy, "made": made}


def second_round(out: Path, seed: int) -> Result:
    """The win rate of `make round2` over the first round in the demo of a seed."""
    place = project(out, seed)
    if not (place.directory / "run/round2/winrate.json").exists():
        command = ["make", "round2", f"RLHFKIT={shlex.join(RLHFKIT)}"]
        subprocess.run(command, cwd=place.directory, check=True, stdout=sys.stderr)
    row = place.read("run/round2/winrate.json")["models"]["round2"]
    return {"kl": final_kl(place, "run/round2/ppo"), **{k: row[k] for k in ("win_rate", "ci_low", "ci_high")}}


def few_rounds(out: Path) -> Result:
    """Two rounds of 500 rankings each, and as many rankings of the fine-tuned model's answers alone."""
    return {"rows": [row for seed in FEW_SEEDS for row in _few_rounds(project(out, seed), seed)]}


def _few_rounds(place: Place, seed: int) -> list[Result]:
    base = "run/more/few"
    directory = place.directory / base
    directory.mkdir(parents=True, exist_ok=True)
    ranked = (place.directory / "run/rankings.jsonl").read_text().splitlines(keepends=True)
    prompts = (place.directory / "data/rank.jsonl").read_text().splitlines(keepends=True)
    for name, lines in {
        "first": ranked[:500],
        "control": ranked[:1000],
        "prompts2": prompts[500:1000],
    }.items():
        (directory / f"{name}.jsonl").write_text("".join(lines))
    rows: list[Result] = []

    def learn(name: str, words: str, *rankings: str) -> None:
        judge = ("-m", "run/sft", "--epochs", 2, "--batch-size", 8, "--lr", 1e-3, "--seed", 1)
        check = ("--center-on", "data/sft.jsonl", "--eval", "run/valid.jsonl")
        files = (f"{base}/{file}.jsonl" for file in rankings)
        place.make(f"{base}/rm{name}", "train-rm", *files, *judge, *check)
        run = place.ppo(f"{base}/ppo{name}", *DEMO, reward=f"{base}/rm{name}")
        first, kl = place.duel(run, f"{base}/ppo1") if name != "1" else None, final_kl(place, run)
        result = {k: place.read(f"{base}/rm{name}/eval.json")[k] for k in ("accuracy", "accuracy_se")}
        over = {"over_sft": place.duel(run), "over_round_1": first}
        rows.append({"seed": seed, "round": name, "labels": words, **result, "kl": kl, **over})

    learn("1", "500 of SFT's answers: round 1", "first")
    learn("c", "1,000 of SFT's answers", "control")
    samples = f"{base}/samples2.jsonl"
    place.make(samples, "sample", f"{base}/prompts2.jsonl", "-m", f"{base}/ppo1", "-n", 6, *SAMPLE)
    place.make(f"{base}/second.jsonl", "rank", samples, "--by", GOLD, "--noise", 0.5, "--seed", 2)
    learn("2", "500 of SFT's and 500 of round 1's: round 2", "first", "second")
    rows[-1]["over_control"] = place.duel(f"{base}/ppo2", f"{base}/ppoc")
    return rows


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
