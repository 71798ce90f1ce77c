"""The rows of `make bench`: which work is measured, by whom, at which settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from benchmarks.drive import Row, Side

TRANSFORMERS = ("transformers",)
TRAINER = ("transformers", "accelerate")
TRL = ("trl", "datasets", "accelerate")

#: Llama-style shapes. Floating-point operations a token of training: 6 a weight of matrices (the output
#: layer included), and 12 x layers x width x context for attention, counted in full.
SHAPES: Mapping[str, Mapping[str, int]] = {
    "a": {"layers": 6, "hidden": 384, "heads": 6, "ffn": 1024},
    "b": {"layers": 12, "hidden": 768, "heads": 12, "ffn": 2048},
}
DATA: Mapping[str, Mapping[str, int]] = {
    "a": {"batch": 16, "context": 256, "vocab": 65},
    "b": {"batch": 2, "context": 1024, "vocab": 8192},
}
#: Steps between checkpoints: one a minute of work, the default of rlhfkit's trainers, whose clock would count
#: the sleep between laps as well.
SAVE_EVERY = {"a": 100, "b": 25, "sft": 80, "pairs": 50, "rankings": 60, "ppo": 5}
MATRIX = "bf16 matrix products"


def flops_per_token(shape: str) -> float:
    """Floating-point operations of a training step, per token."""
    model, data = SHAPES[shape], DATA[shape]
    width = model["hidden"]
    weights = model["layers"] * (4 * width**2 + 3 * width * model["ffn"]) + data["vocab"] * width
    return 6 * weights + 12 * model["layers"] * width * data["context"]


def pretraining(shape: str, nanogpt: str | None) -> Row:
    data, model = {"shape": shape, **DATA[shape]}, SHAPES[shape]
    ours = {name: value for name, value in {**data, **model}.items() if name != "vocab"}
    ours["save_every"] = SAVE_EVERY[shape]
    sides = [
        Side("rlhfkit", "ours:pretrain", ours),
        Side("transformers loop, bf16 autocast", "peers:loop", {**data, **model, "bf16": True}, TRANSFORMERS),
        Side(
            "transformers Trainer, bf16",
            "peers:trainer",
            {**data, **model, "bf16": True},
            TRAINER,
            quick=False,
        ),
        Side(
            "transformers loop, fp32",
            "peers:loop",
            {**data, **model, "bf16": False},
            TRANSFORMERS,
            quick=False,
        ),
        Side(MATRIX, "peers:matrix_rate", unit="FLOP"),
    ]
    if shape == "b":
        # All sides of a row are resident at once: without this one they fit 16 GB.
        sides = [side for side in sides if side.name != "transformers loop, fp32"]
    if nanogpt:
        settings = {**data, **model, "source": nanogpt}
        sides.insert(3, Side("nanoGPT (fp32, as on any CPU)", "peers:nanogpt", settings, quick=False))
    return Row(
        f"pretrain-{shape}",
        f"Pretraining, shape {shape}: {model['layers']} layers of {model['hidden']}, "
        f"{data['batch']} x {data['context']} tokens a step, vocabulary {data['vocab']}",
        "token",
        tuple(sides),
        laps=5 if shape == "a" else 3,
        quick=shape == "a",
    )


def fine_tuning() -> Row:
    records: dict[str, Any] = {"batch": 16, "length": 512}
    return Row(
        "sft",
        "Fine-tuning on GSM8K, 16 records a step (TRL packed: 4 rows of 512 tokens)",
        "real token",
        (
            Side("rlhfkit", "ours:sft", {**records, "save_every": SAVE_EVERY["sft"]}),
            Side(
                "TRL SFTTrainer, bf16, padded",
                "trl_sides:sft",
                {**records, "packed": False},
                TRL,
                quick=False,
            ),
            Side(
                "TRL SFTTrainer, bf16, packing=wrapped",
                "trl_sides:sft",
                {"batch": 4, "length": 512, "packed": True},
                TRL,
            ),
        ),
        quick=True,
    )


def reward_models() -> list[Row]:
    def row(name: str, title: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Row:
        sides = (
            Side("rlhfkit", "ours:reward_model", {**ours, "length": 512}),
            Side("TRL RewardTrainer, bf16", "trl_sides:reward_model", {**theirs, "length": 512}, TRL),
        )
        return Row(name, title, "pair", sides, laps=4)

    return [
        row(
            "rm-pairs",
            "Reward model on pairs of hh, 16 pairs a step",
            {"records": "pairs.jsonl", "batch": 16, "pairs": 1, "save_every": SAVE_EVERY["pairs"]},
            {"pairs_file": "pairs.jsonl", "batch": 16, "accumulate": 1},
        ),
        row(
            "rm-rankings",
            "Reward model on rankings of five solutions, 4 rankings (40 pairs) a step",
            {"records": "rankings.jsonl", "batch": 4, "pairs": 10, "save_every": SAVE_EVERY["rankings"]},
            {"pairs_file": "ranking-pairs.jsonl", "batch": 10, "accumulate": 4},
        ),
    ]


def ppo() -> Row:
    ours = {
        "prompts": 64,
        "max_new_tokens": 53,
        "temperature": 0.7,
        "ppo_epochs": 4,
        "minibatches": 1,
        "kl_coef": 0.05,
        "save_every": SAVE_EVERY["ppo"],
    }
    theirs = {"prompts": 64, "micro": 16, "new": 53, "epochs": 4}
    return Row(
        "ppo",
        "PPO iteration: 64 prompts of 64 tokens, 53 new tokens, 4 epochs of one step",
        "episode",
        (
            Side("rlhfkit", "ours:ppo", ours),
            Side("rlhfkit --value-model shared", "ours:ppo", {**ours, "value_model": "shared"}),
            Side("TRL 1.12 PPOTrainer, bf16", "trl_sides:ppo", theirs, TRL),
        ),
        laps=3,
        seconds=1.0,
        warm=1,
    )


def sampling() -> list[Row]:
    peer = "transformers generate, bf16"

    def row(name: str, title: str, ours: Side, theirs: dict[str, Any], *, quick: bool = False) -> Row:
        sides = (ours, Side(peer, "peers:generate", {**theirs, "new": 128}, TRANSFORMERS))
        return Row(name, title, "new token", sides, laps=4, seconds=3.0, warm=3, quick=quick)

    rows = [
        row(
            f"sample-{rows}",
            f"Sampling, batch {rows}: 64 prompt tokens, 128 new ones, prefill included",
            Side("rlhfkit", "ours:sample", {"rows": rows, "new": 128}),
            {"rows": rows},
            quick=rows == 16,
        )
        for rows in (1, 16, 64)
    ]
    rows.append(
        row(
            "sample-mixed",
            "Sampling, 128 requests that end after 1 to 128 tokens (transformers: 64 at a time)",
            Side("rlhfkit", "ours:sample_mixed", {"requests": 128, "new": 128}),
            {"rows": 64, "requests": 128},
        )
    )
    rows.append(
        row(
            "sample-n8",
            "Sampling, 8 completions of each of 8 prompts",
            Side("rlhfkit", "ours:sample", {"rows": 64, "n": 8, "new": 128}),
            {"rows": 64, "n": 8},
        )
    )
    return rows


def all_rows(nanogpt: str | None) -> list[Row]:
    """Every row, peers that are not installed included."""
    return [
        pretraining("a", nanogpt),
        pretraining("b", nanogpt),
        fine_tuning(),
        *reward_models(),
        ppo(),
        *sampling(),
    ]


def missing(side: Side) -> list[str]:
    """The libraries that a side lacks."""
    return [name for name in side.needs if importlib.util.find_spec(name) is None]
