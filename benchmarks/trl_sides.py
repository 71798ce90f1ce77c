"""TRL's sides, each at the best setting that it ships: bfloat16 autocast, no gradient checkpointing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset

from benchmarks.lap import Pacer
from benchmarks.peers import tick_callback

COMMON = {
    "bf16": True,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
MANY = 100_000


def records(work: Path, name: str) -> list[dict[str, Any]]:
    """The records of a file of the work directory."""
    return [json.loads(line) for line in (work / name).read_text(encoding="utf-8").splitlines()]


def opened(work: Path) -> tuple[Any, Any]:
    """The policy in float32 (bfloat16 is autocast's part), and the tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(work / "policy", dtype=torch.float32)
    return model, transformers.AutoTokenizer.from_pretrained(work / "policy")


def reward(work: Path) -> Any:
    """The reward model in float32."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        work / "reward", num_labels=1, dtype=torch.float32
    )


def sft(pacer: Pacer, work: Path, *, batch: int, length: int, packed: bool) -> None:
    """Units are real tokens; packed, `batch` counts rows of `length` tokens."""
    from trl import SFTConfig, SFTTrainer

    class Counting(SFTTrainer):
        seen = 0

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            self.seen += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().compute_loss(model, inputs, *rest, **named)

    model, tokenizer = opened(work)
    packing = {"packing": True, "packing_strategy": "wrapped"} if packed else {}
    arguments = SFTConfig(
        output_dir=str(work / f"trl-sft-{packed}"),
        per_device_train_batch_size=batch,
        max_length=length,
        max_steps=MANY,
        **packing,
        **COMMON,
    )

    def tick() -> None:
        pacer.tick(trainer.seen)
        trainer.seen = 0

    trainer = Counting(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(records(work, "demos.jsonl")),
        processing_class=tokenizer,
        callbacks=[tick_callback(tick)],
    )
    trainer.train()


def reward_model(
    pacer: Pacer, work: Path, *, pairs_file: str, batch: int, accumulate: int, length: int
) -> None:
    """Units are pairs."""
    from trl import RewardConfig, RewardTrainer

    fields = ("prompt", "chosen", "rejected")
    pairs = [{name: pair[name] for name in fields} for pair in records(work, pairs_file)]
    arguments = RewardConfig(
        output_dir=str(work / f"trl-{pairs_file}"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_length=length,
        max_steps=MANY,
        **COMMON,
    )
    RewardTrainer(
        model=reward(work),
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=opened(work)[1],
        callbacks=[tick_callback(lambda: pacer.tick(batch * accumulate))],
    ).train()


def ppo(pacer: Pacer, work: Path, *, prompts: int, micro: int, new: int, epochs: int) -> None:
    """Units are episodes; phases are told apart by the calls that begin them."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    model, tokenizer = opened(work)
    reference, _ = opened(work)
    asked = [{"input_ids": tokenizer(r["prompt"]).input_ids} for r in records(work, "prompts.jsonl")]
    arguments = PPOConfig(
        output_dir=str(work / "trl-ppo"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=prompts // micro,
        local_rollout_forward_batch_size=prompts,
        num_ppo_epochs=epochs,
        response_length=new,
        temperature=0.7,
        kl_coef=0.05,
        gamma=1.0,
        lam=0.95,
        total_episodes=MANY * prompts,
        num_sample_generations=0,
        **COMMON,
    )
    marks: dict[str, float] = {}
    sampler = ppo_trainer.batch_generation

    def timed_sampler(*rest: Any, **named: Any) -> Any:
        marks["begin"] = time.perf_counter()
        out = sampler(*rest, **named)
        marks["sampled"] = time.perf_counter()
        return out

    def first_update(*_: Any) -> None:
        marks.setdefault("scored", time.perf_counter())

    def tick() -> None:
        end = time.perf_counter()
        pacer.tick(
            prompts,
            rollout=marks["sampled"] - marks["begin"],
            scoring=marks["scored"] - marks["sampled"],
            update=end - marks["scored"],
        )
        marks.clear()

    ppo_trainer.batch_generation = timed_sampler
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=model,
        ref_model=reference,
        reward_model=reward(work),
        value_model=reward(work),
        train_dataset=Dataset.from_list(asked),
        callbacks=[tick_callback(tick)],
    )
    # Only an update runs policy and value network as one module.
    trainer.model.register_forward_pre_hook(first_update)
    trainer.train()
