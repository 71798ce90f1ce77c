#!/usr/bin/env python3
"""Write report.md to standard output from what the stages left in run/. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path

RUN = Path("run")
NAMES = {
    "small": "GPT (small, pretrained only)",
    "small-prompted": "GPT, prompted (few-shot)",
    "sft": "SFT",
    "ppo": "PPO",
    "big": "GPT (big)",
    "big-prompted": "GPT (big), prompted",
}


def read(path: str) -> dict:
    return json.loads((RUN / path).read_text())


def parameters(model: str) -> int:
    """Parameters of a model directory, counted in the header of its weights file."""
    with open(RUN / model / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for length in tensor["shape"]:
                size *= length
            total += size
    return total


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def main() -> None:
    summary = read("winrate.json")
    baseline, rows = summary["baseline"], summary["models"]
    small, big = parameters("small"), parameters("big")
    print("# Report\n")
    print(f"Win rate of answers to held-out prompts against those of `{baseline}`, by the gold score.")
    print(
        f"The small model has {small:,} parameters, the big one {big:,} ({big / small:.1f} times as many).\n"
    )
    print("| model | win rate | 95% interval | prompts | mean length | at equal length |")
    print("|---|---|---|---|---|---|")
    for name in NAMES:
        if name in rows:
            row = rows[name]
            interval = f"{percent(row['ci_low'])} to {percent(row['ci_high'])}"
            rates = f"{percent(row['win_rate'])} | {interval} | {row['n']} | {row['avg_length']:.1f}"
            print(f"| {NAMES[name]} | {rates} | {percent(row.get('length_controlled_winrate'))} |")
    print()
    duel = head_to_head(summary, "ppo", "big")
    if duel is not None:
        print(f"Head to head, the small PPO model wins {percent(duel)} against the big pretrained one.\n")
    reward_model = json.loads((RUN / "rm" / "eval.json").read_text())
    error = reward_model["accuracy_se"]
    print(
        f"The reward model ({parameters('rm'):,} parameters) orders {percent(reward_model['accuracy'])} "
        f"of {reward_model['pairs']:,} held-out pairs as the gold score does "
        f"(standard error {percent(error)}).\n"
    )
    metrics = [json.loads(line) for line in (RUN / "ppo" / "metrics.jsonl").read_text().splitlines()]
    gold = [m for m in metrics if m.get("eval/scores") is not None]
    if gold:
        first, last = metrics[0], metrics[-1]
        print(
            f"Over {last['step']} iterations PPO moved the learnt reward from "
            f"{first['objective/scores']:.2f} to {last['objective/scores']:.2f}, the gold score of held-out "
            f"prompts from {gold[0]['eval/scores']:.2f} (step {gold[0]['step']}) to "
            f"{gold[-1]['eval/scores']:.2f}, at a KL of {last['objective/kl']:.2f} nats per response.\n"
        )
    print("![win rates](winrate.png)\n\n![PPO](curves.png)")


def head_to_head(summary: dict, a: str, b: str) -> float | None:
    """The share of comparisons that `a` won against `b` directly, ties half."""
    table = summary.get("head_to_head") or {}
    entry = (table.get(a) or {}).get(b)
    if isinstance(entry, dict):
        return entry.get("win_rate")
    return entry


if __name__ == "__main__":
    main()
