"""A run that is killed at any moment and started again with the same command ends in the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Tiny

KILLING = Path(__file__).parents[1] / "killing.py"


def commands(tiny: Tiny, out: Path) -> dict[str, list[str]]:
    common = ["-o", str(out), "--save-every", "3", "-q"]
    ppo = [
        *["ppo", str(tiny.prompts), "-m", str(tiny.sft), "-r", str(tiny.rm), "--batch-size", "16"],
        *["--minibatches", "2", "--max-new-tokens", "12", "--steps", "16", "--lr", "1e-3"],
        *["--kl-target", "3", "--ptx", str(tiny.shard), "--ptx-coef", "0.1"],
        *["--reward-scale", "running", "--reward-shift", *common],
    ]
    return {
        "pretrain": [
            *["pretrain", str(tiny.shard), "--tokenizer", str(tiny.base), "--layers", "2", "--hidden", "32"],
            *["--heads", "2", "--context", "16", "--batch-size", "16", "--steps", "40", *common],
        ],
        "sft": [
            *["sft", str(tiny.demos), "-m", str(tiny.base), "--steps", "40", "--lr", "1e-3"],
            *["--mix", str(tiny.shard), "--save-epochs", *common],
        ],
        "train-rm": [
            *["train-rm", str(tiny.rankings), "-m", str(tiny.sft), "--batch-size", "16", "--steps", "30"],
            *["--eval", str(tiny.rankings), "--eval-every", "10", *common],
        ],
        "ppo": ppo,
        "ppo-shared": [*ppo, "--value-model", "shared"],
    }


def kill(arguments: list[str], command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(KILLING), *arguments, "--", *command],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["pretrain", "sft", "train-rm", "ppo"])
def test_ten_kills_change_no_bit(tiny: Tiny, tmp_path: Path, command: str) -> None:
    kill(["--kills", "10", "--seed", "1"], commands(tiny, tmp_path / "out")[command])


@pytest.mark.parametrize(("signum", "status"), [(15, 143), (2, 130)])
def test_a_polite_signal_saves_and_says_so(tiny: Tiny, tmp_path: Path, signum: int, status: int) -> None:
    command = commands(tiny, tmp_path / "out")["sft"]
    kill(["--kills", "4", "--signal", str(signum), "--expect", str(status)], command)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pretrain", "sft", "train-rm", "ppo", "ppo-shared"])
def test_two_hundred_kills_change_no_bit(tiny: Tiny, tmp_path: Path, command: str) -> None:
    kill(["--kills", "200", "--seed", "2"], commands(tiny, tmp_path / "out")[command])
