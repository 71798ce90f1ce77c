"""Presets are the columns of the papers' tables, and flags beat them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from rlhfkit.cli.settings import resolve
from rlhfkit.engine.presets import CELLS, PRESETS
from rlhfkit.stages import load, names


def settings(*flags: str) -> tuple[object, dict[str, str]]:
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    required = {"model": "m", "reward": "r", "output": "o"}
    stage = load("ppo")
    return resolve(
        "ppo", stage.config, {**required, **given}, environ={}, commands=names(), presets=stage.presets
    )


def test_every_preset_fills_every_cell_and_says_what_is_ours() -> None:
    known = {f.name for f in fields(load("ppo").config)}
    for preset in PRESETS.values():
        assert set(CELLS) <= set(preset.settings) <= known
        assert set(preset.ours) == set(preset.settings) - set(preset.stated)
        assert set(preset.filled).isdisjoint(preset.stated)
        stated, _, ours = preset.describe().partition("; not stated there, ours: ")
        assert all(f"{name} " in stated for name in preset.stated)
        assert all(f"{name} " in ours for name in preset.ours)


# The columns as the papers print them: a cell that is not listed is not printed.
COLUMNS: dict[str, dict[str, object]] = {
    "instructgpt": {
        "batch_size": 512,
        "minibatches": 8,
        "ppo_epochs": 1,
        "value_lr": 9e-6,
        "kl_coef": 0.02,
        "gamma": 1.0,
        "clip_eps": 0.2,
        "lr_schedule": "constant",
        "warmup": 10.0,
        "temperature": 1.0,
        "ema_decay": 0.992,
    },
    "stiennon": {
        "batch_size": 512,
        "ppo_epochs": 4,
        "lr": 1.5e-5,
        "kl_coef": 0.05,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "lr_schedule": "linear",
    },
    "ziegler": {
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
        "whiten_rewards": True,
        "ema_decay": 0.0,
        "grad_clip": 0.0,
        "value_model": "shared",
        "whiten": "minibatch",
        "loss_mean": "length",
        "kl_estimator": "k1",
        "missing_eos": "replace",
        "missing_eos_penalty": 1.0,
        "reward_scale": "none",
    },
    "nplus": {
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
        "whiten_rewards": False,
        "ema_decay": 0.0,
        "adam_eps": 1e-5,
        "grad_clip": 0.0,
        "whiten": "batch",
        "loss_mean": "tokens",
        "kl_estimator": "k1",
        "missing_eos": "replace",
        "missing_eos_penalty": 1.0,
        "reward_scale": "none",
    },
    "gao": {"batch_size": 256, "minibatches": 128, "kl_coef": 0.0, "gae_lambda": 0.95, "clip_eps": 0.2},
}
EPISODES = {"instructgpt": 256_000, "stiennon": 1_000_000, "ziegler": 1_000_000, "nplus": 1_000_000}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_the_papers(name: str) -> None:
    """What a column prints is what runs and is called stated; every other cell is called ours."""
    config, sources = settings("preset", name)
    printed = COLUMNS[name]
    assert {key: getattr(config, key) for key in printed} == printed
    assert all(sources[key] == "preset" for key in printed)
    fixed = {"kl_target", "steps"}  # "fixed coefficient" is said by printing one
    assert set(PRESETS[name].stated) - fixed == set(printed) - fixed
    if name in EPISODES:
        assert abs(config.steps * config.batch_size - EPISODES[name]) < 512  # type: ignore[attr-defined]
    else:
        assert "steps" not in PRESETS[name].settings


def test_a_run_says_where_it_leaves_its_preset() -> None:
    config, _ = settings("preset", "gao", "kl_coef", "0.5", "gamma", "0.9")
    said = PRESETS["gao"].describe(config)
    assert said.endswith("set otherwise in this run: kl_coef 0.5, gamma 0.9")
    config, _ = settings("preset", "gao")
    assert "otherwise" not in PRESETS["gao"].describe(config)


def test_epochs_beat_the_steps_of_a_preset() -> None:
    config, _ = settings("preset", "nplus", "epochs", "2")
    assert (config.steps, config.epochs) == (None, 2.0)  # type: ignore[attr-defined]


def test_a_flag_beats_the_preset() -> None:
    config, sources = settings("preset", "instructgpt", "kl_coef", "0.5")
    assert config.kl_coef == 0.5  # type: ignore[attr-defined]
    assert sources["kl_coef"] == "flag"
    assert sources["minibatches"] == "preset"
