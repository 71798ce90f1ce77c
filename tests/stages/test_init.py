"""The repository that `init` writes: its Makefile's graph with stand-in commands, and, slowly, the real run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from rlhfkit.errors import CannotCreate
from rlhfkit.stages import init

#: Records its command line and creates what -o names, as the real commands do: run.json last.
STAND_IN = """import pathlib, sys
words = sys.argv[1:]
if not sys.stdin.isatty() and words[0] in ("rank",) and not any(w.endswith(".jsonl") for w in words[1:2]):
    sys.stdin.read()
with open("commands.log", "a") as log:
    log.write(" ".join(words) + "\\n")
if "-o" in words:
    out = pathlib.Path(words[words.index("-o") + 1])
    if out.suffix:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("done")
    else:
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.json").write_text("done")
"""


def project(tmp_path: Path, name: str = "a project") -> Path:
    directory = tmp_path / name
    init.run([str(directory)], init.Config(scale=0.01))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    program = tmp_path / "rlhfkit"
    # Not a #! line of Python's: its path may hold a space.
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/stand_in.py" "$@"\n')
    program.chmod(0o755)
    return directory


def make(directory: Path, *arguments: str) -> list[str]:
    """Run make with the stand-in; the commands that it ran, by name and output."""
    log = directory / "commands.log"
    log.unlink(missing_ok=True)
    path = f"{directory.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["make", *arguments, "PYTHON=true"],
        cwd=directory,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = log.read_text().splitlines() if log.exists() else []
    found = []
    for line in lines:
        words = line.split()
        found.append(f"{words[0]} {words[words.index('-o') + 1]}" if "-o" in words else words[0])
    return sorted(found)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = project(tmp_path_factory.mktemp("world"))
    ran = make(directory)
    assert "ppo run/ppo" in ran
    assert len([r for r in ran if r.startswith("pretrain")]) == 2
    return directory


def touch(path: Path) -> None:
    future = time.time() + 5
    os.utime(path, (future, future))


def rerun(built: Path, tmp_path: Path, *touched: str) -> list[str]:
    copy = tmp_path / "a project"
    shutil.copytree(built, copy, symlinks=True)
    for item in [p for p in copy.rglob("*") if p.is_file()]:
        os.utime(item, ns=(built.joinpath(item.relative_to(copy)).stat().st_mtime_ns,) * 2)
    shutil.copy2(built.parent / "rlhfkit", tmp_path / "rlhfkit")
    for name in touched:
        touch(copy / name)
    return make(copy)


def test_a_second_make_has_nothing_to_do(built: Path, tmp_path: Path) -> None:
    assert rerun(built, tmp_path) == []


def test_new_demonstrations_rerun_what_follows_from_them(built: Path, tmp_path: Path) -> None:
    ran = rerun(built, tmp_path, "data/sft.jsonl")
    assert "sft run/sft" in ran
    assert "ppo run/ppo" in ran
    assert not [r for r in ran if r.startswith(("pretrain", "tokenize", "train-tokenizer"))]


def test_new_test_prompts_rerun_the_comparison_only(built: Path, tmp_path: Path) -> None:
    ran = rerun(built, tmp_path, "data/test.jsonl")
    assert {r.split()[0] for r in ran} == {"sample", "eval-winrate", "plot"}


def test_new_rankings_train_no_language_model(built: Path, tmp_path: Path) -> None:
    ran = rerun(built, tmp_path, "run/rankings.jsonl")
    assert "train-rm run/rm" in ran
    assert not [r for r in ran if r.startswith(("pretrain", "sft", "sample run/samples"))]


def test_two_jobs_at_once(tmp_path: Path) -> None:
    assert "eval-winrate run/winrate.json" in make(project(tmp_path), "-j2")


def test_an_existing_directory_is_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(CannotCreate):
        init.run([str(tmp_path / "thesis")], init.Config(scale=0.01))
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"


def real_make(directory: Path, *arguments: str) -> str:
    """Run make with the real commands; what it said."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["make", *arguments],
        cwd=directory,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_run_of_the_real_commands(tmp_path: Path) -> None:
    directory = tmp_path / "a project"
    init.run([str(directory)], init.Config(scale=0.01))
    real_make(directory, "QUICK=1")
    report = (directory / "report.md").read_text()
    assert "| PPO |" in report
    assert "times as many" in report
    for picture in ("winrate.png", "curves.png"):
        assert (directory / picture).read_bytes().startswith(b"\x89PNG")
    assert "rlhfkit" not in real_make(directory, "QUICK=1"), "nothing is out of date"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.timeout(1800)
def test_the_whole_method_orders_the_models(tmp_path: Path, seed: int) -> None:
    """GPT < prompted < SFT < PPO with 95% intervals apart, and small PPO above the big pretrained model."""
    directory = tmp_path / "demo"
    init.run([str(directory)], init.Config(seed=seed))
    real_make(directory, "-j2")
    models = json.loads((directory / "run" / "winrate.json").read_text())["models"]
    order = [models[name] for name in ("small", "small-prompted", "sft", "ppo")]
    for worse, better in pairwise(order):
        assert worse["ci_high"] < better["ci_low"]
    for big in ("big", "big-prompted"):
        assert models[big]["ci_high"] < models["ppo"]["ci_low"]
    assert json.loads((directory / "run" / "rm" / "eval.json").read_text())["accuracy"] >= 0.70
