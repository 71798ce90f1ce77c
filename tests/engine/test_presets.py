"""Presets are the columns of the papers' tables, and flags beat them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from rlhfkit.cli.settings import resolve
from rlhfkit.engine.presets import PRESETS
from rlhfkit.stages import load, names


def settings(*flags: str) -> tuple[object, dict[str, str]]:
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    required = {"model": "m", "reward": "r", "output": "o"}
    stage = load("ppo")
    return resolve(
        "ppo", stage.config, {**required, **given}, environ={}, commands=names(), presets=stage.presets
    )


def test_every_preset_names_real_settings_and_says_what_is_ours() -> None:
    known = {f.name for f in fields(load("ppo").config)}
    for preset in PRESETS.values():
        assert set(preset.settings) <= known
        assert set(preset.ours) <= set(preset.settings)
        assert "ours" in preset.describe()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "instructgpt",
            {"batch_size": 512, "minibatches": 8, "ppo_epochs": 1, "kl_coef": 0.02, "ema_decay": 0.992},
        ),
        ("stiennon", {"lr": 1.5e-5, "kl_coef": 0.05, "gae_lambda": 0.95, "lr_schedule": "linear"}),
        ("ziegler", {"kl_coef": 0.15, "kl_target": 6.0, "temperature": 0.7, "whiten_rewards": True}),
        ("nplus", {"lr": 3e-6, "ppo_epochs": 4, "minibatches": 1, "value_clip_eps": 0.2, "value_coef": 0.1}),
        ("gao", {"batch_size": 256, "minibatches": 128, "kl_coef": 0.0}),
    ],
)
def test_columns_of_the_papers(name: str, expected: dict[str, object]) -> None:
    config, sources = settings("preset", name)
    assert {key: getattr(config, key) for key in expected} == expected
    assert all(sources[key] == "preset" for key in expected)


def test_a_flag_beats_the_preset() -> None:
    config, sources = settings("preset", "instructgpt", "kl_coef", "0.5")
    assert config.kl_coef == 0.5  # type: ignore[attr-defined]
    assert sources["kl_coef"] == "flag"
    assert sources["minibatches"] == "preset"
