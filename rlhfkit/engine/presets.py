"""PPO settings of the papers, for `ppo --preset NAME`. Cells that a source leaves open are named as ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Settings by field name; `ours` are those that the source does not state."""

    source: str
    settings: Mapping[str, object]
    ours: tuple[str, ...]

    def describe(self) -> str:
        """One line for a person: what the source says, then what was filled in."""
        stated = ", ".join(f"{k} {v}" for k, v in self.settings.items() if k not in self.ours)
        filled = ", ".join(f"{k} {self.settings[k]}" for k in self.ours)
        return f"{self.source}: {stated}; not stated there, ours: {filled}"


PRESETS: Mapping[str, Preset] = {
    "instructgpt": Preset(
        "Ouyang et al. 2022, C.4",
        {
            "batch_size": 512,
            "minibatches": 8,
            "ppo_epochs": 1,
            "steps": 500,
            "kl_coef": 0.02,
            "value_lr": 9e-6,
            "gamma": 1.0,
            "clip_eps": 0.2,
            "lr_schedule": "constant",
            "warmup": 10.0,
            "temperature": 1.0,
            "ema_decay": 0.992,
            "lr": 8e-6,
            "gae_lambda": 0.95,
            "whiten": "batch",
            "whiten_rewards": False,
            "value_clip_eps": None,
            "adam_eps": 1e-5,
            "grad_clip": 1.0,
            "missing_eos": "replace",
            "missing_eos_penalty": 1.0,
        },
        ours=(
            *("lr", "gae_lambda", "whiten", "whiten_rewards", "value_clip_eps", "adam_eps", "grad_clip"),
            *("missing_eos", "missing_eos_penalty"),
        ),
    ),
    "stiennon": Preset(
        "Stiennon et al. 2020, B.1 (1.3B)",
        {
            "batch_size": 512,
            "ppo_epochs": 4,
            "lr": 1.5e-5,
            "kl_coef": 0.05,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "lr_schedule": "linear",
            "minibatches": 1,
            "warmup": 0.0,
            "clip_eps": 0.2,
            "temperature": 1.0,
            "whiten": "batch",
            "value_clip_eps": None,
            "ema_decay": 0.0,
            "missing_eos": "replace",
            "missing_eos_penalty": 1.0,
        },
        ours=(
            *("minibatches", "warmup", "clip_eps", "temperature", "whiten", "value_clip_eps", "ema_decay"),
            *("missing_eos", "missing_eos_penalty"),
        ),
    ),
    "ziegler": Preset(
        "Ziegler et al. 2019, code",
        {
            "batch_size": 512,
            "minibatches": 1,
            "ppo_epochs": 4,
            "lr": 1e-5,
            "kl_coef": 0.15,
            "kl_target": 6.0,
            "kl_horizon": 10_000.0,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "clip_eps": 0.2,
            "value_clip_eps": 0.2,
            "value_coef": 0.1,
            "lr_schedule": "linear",
            "warmup": 0.0,
            "temperature": 0.7,
            "whiten": "minibatch",
            "whiten_rewards": True,
            "ema_decay": 0.0,
            "missing_eos": "replace",
            "missing_eos_penalty": 1.0,
            "adam_eps": 1e-5,
        },
        ours=("adam_eps",),
    ),
    "nplus": Preset(
        "The N+ implementation details, 2024",
        {
            "batch_size": 512,
            "minibatches": 1,
            "ppo_epochs": 4,
            "lr": 3e-6,
            "kl_coef": 0.05,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "clip_eps": 0.2,
            "value_clip_eps": 0.2,
            "value_coef": 0.1,
            "lr_schedule": "linear",
            "warmup": 0.0,
            "temperature": 0.7,
            "whiten": "batch",
            "whiten_rewards": False,
            "ema_decay": 0.0,
            "adam_eps": 1e-5,
            "missing_eos": "replace",
            "missing_eos_penalty": 1.0,
            "grad_clip": 0.0,
        },
        ours=(),
    ),
    "gao": Preset(
        "Gao, Schulman, Hilton 2022",
        {
            "batch_size": 256,
            "minibatches": 128,
            "kl_coef": 0.0,
            "gae_lambda": 0.95,
            "clip_eps": 0.2,
            "ppo_epochs": 1,
            "lr": 1e-5,
            "gamma": 1.0,
            "temperature": 1.0,
            "lr_schedule": "constant",
            "ema_decay": 0.0,
        },
        ours=("ppo_epochs", "lr", "gamma", "temperature", "lr_schedule", "ema_decay"),
    ),
}
