"""PPO settings of the papers, for `ppo --preset NAME`. Cells that a source leaves open are named as ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: What a paper's column is made of. Every preset fills every cell: no default of ours slips in unsaid.
CELLS = (
    *("batch_size", "minibatches", "ppo_epochs", "lr", "lr_schedule", "warmup", "adam_eps", "grad_clip"),
    *("kl_coef", "kl_target", "kl_estimator", "gamma", "gae_lambda", "clip_eps"),
    *("value_clip_eps", "value_coef", "whiten", "whiten_rewards", "loss_mean", "temperature", "ema_decay"),
    *("missing_eos", "missing_eos_penalty", "reward_scale"),
)

#: What stands in a cell that a paper does not print: from Ziegler et al. and N+, or our own choice.
OURS: Mapping[str, object] = {
    "lr_schedule": "constant",
    "warmup": 0.0,
    "adam_eps": 1e-5,
    "grad_clip": 1.0,
    "kl_target": None,
    "kl_estimator": "k1",
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "value_clip_eps": None,
    "value_coef": 1.0,
    "whiten": "batch",
    "whiten_rewards": False,
    "loss_mean": "tokens",
    "temperature": 1.0,
    "ema_decay": 0.0,
    "missing_eos": "replace",
    "missing_eos_penalty": 1.0,
    "reward_scale": "none",
}


@dataclass(frozen=True)
class Preset:
    """A source, what it states, and by field name what was filled in where it does not."""

    source: str
    stated: Mapping[str, object]
    filled: Mapping[str, object] = field(default_factory=dict)

    @property
    def ours(self) -> Mapping[str, object]:
        """The cells that the source leaves open."""
        cells = {name: value for name, value in OURS.items() if name in CELLS} | dict(self.filled)
        return {name: value for name, value in cells.items() if name not in self.stated}

    @property
    def settings(self) -> Mapping[str, object]:
        """All cells by field name."""
        return {**self.stated, **self.ours}

    def describe(self, config: object = None) -> str:
        """One line for a person: what the source says, what was filled in, and what `config` says instead."""

        def listed(cells: Mapping[str, object]) -> str:
            return ", ".join(f"{name} {shown(value)}" for name, value in cells.items())

        text = f"{self.source}: {listed(self.stated)}"
        text += f"; not stated there, ours: {listed(self.ours)}" if self.ours else ""
        if config is not None:
            given = {name: getattr(config, name) for name in self.settings}
            other = {name: value for name, value in given.items() if value != self.settings[name]}
            text += f"; set otherwise in this run: {listed(other)}" if other else ""
        return text


def shown(value: object) -> str:
    """A setting's value as a person writes it."""
    if isinstance(value, bool) or value is None:
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


PRESETS: Mapping[str, Preset] = {
    "instructgpt": Preset(
        "Ouyang et al. 2022, C.4",
        {
            "batch_size": 512,
            "minibatches": 8,
            "ppo_epochs": 1,
            "steps": 500,  # 256k episodes
            "value_lr": 9e-6,
            "kl_coef": 0.02,
            "kl_target": None,
            "gamma": 1.0,
            "clip_eps": 0.2,
            "lr_schedule": "constant",
            "warmup": 10.0,
            "temperature": 1.0,
            "ema_decay": 0.992,
        },
        {"lr": 8e-6},  # swept from 2.55e-6 to 2.55e-5; above 8.05e-6 it diverged
    ),
    "stiennon": Preset(
        "Stiennon et al. 2020, B.1 (1.3B)",
        {
            "batch_size": 512,
            "ppo_epochs": 4,
            "steps": 1953,  # a million episodes
            "lr": 1.5e-5,
            "kl_coef": 0.05,
            "kl_target": None,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "lr_schedule": "linear",
        },
        {"minibatches": 1},
    ),
    "ziegler": Preset(
        "Ziegler et al. 2019, code (sentiment)",
        {
            "batch_size": 512,
            "minibatches": 1,
            "ppo_epochs": 4,
            "steps": 1953,
            "lr": 1e-5,
            "lr_schedule": "linear",
            "warmup": 0.0,
            "grad_clip": 0.0,
            "kl_coef": 0.15,
            "kl_target": 6.0,
            "kl_horizon": 10_000.0,
            "kl_estimator": "k1",
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "clip_eps": 0.2,
            "value_model": "shared",
            "value_clip_eps": 0.2,
            "value_coef": 0.1,
            "whiten": "minibatch",
            "whiten_rewards": True,
            "loss_mean": "length",
            "temperature": 0.7,
            "ema_decay": 0.0,
            "missing_eos": "replace",
            "missing_eos_penalty": 1.0,
            "reward_scale": "none",
        },
    ),
    "nplus": Preset(
        "The N+ implementation details, 2024",
        {
            "batch_size": 512,
            "minibatches": 1,
            "ppo_epochs": 4,
            "steps": 1953,
            "lr": 3e-6,
            "lr_schedule": "linear",
            "warmup": 0.0,
            "adam_eps": 1e-5,
            "grad_clip": 0.0,
            "kl_coef": 0.05,
            "kl_target": None,
            "kl_estimator": "k1",
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "clip_eps": 0.2,
            "value_clip_eps": 0.2,
            "value_coef": 0.1,
            "whiten": "batch",
            "whiten_rewards": False,
            "loss_mean": "tokens",
            "temperature": 0.7,
            "ema_decay": 0.0,
            "missing_eos": "replace",
            "missing_eos_penalty": 1.0,
            "reward_scale": "none",
        },
    ),
    "gao": Preset(
        "Gao, Schulman, Hilton 2022",
        {
            "batch_size": 256,
            "minibatches": 128,
            "kl_coef": 0.0,
            "kl_target": None,
            "gae_lambda": 0.95,
            "clip_eps": 0.2,
        },
        {"ppo_epochs": 1, "lr": 1e-5},
    ),
}
