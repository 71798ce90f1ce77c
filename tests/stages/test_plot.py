"""The command: what it makes of files, where it draws, and what it refuses."""

import json
import os
import subprocess
import sys

import pytest

from rlhfkit.errors import CannotCreate, DataError, InputMissing, UsageError
from rlhfkit.stages.plot import Config, run
from tests.ui.test_curves import SUMMARY


@pytest.fixture
def ppo(tmp_path):
    directory = tmp_path / "runs" / "ppo"
    directory.mkdir(parents=True)
    rows = [
        {"step": i, "objective/kl": i / 10, "objective/scores": (i / 10) ** 0.5 * (2 - i / 100), "x": None}
        for i in range(40)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return directory


@pytest.fixture
def summary(tmp_path):
    path = tmp_path / "winrate.json"
    path.write_text(json.dumps(SUMMARY, indent=2))
    return str(path)


def text(inputs, **settings):
    return "".join(run([str(i) for i in inputs], Config(width=80, **settings)))


def test_a_run_directory_in_the_terminal(ppo):
    drawn = text([ppo])
    assert "Score (mean score)" in drawn
    assert "KL to the reference (nats per response)" in drawn
    assert drawn == text([ppo / "metrics.jsonl"])


def test_named_metrics(ppo):
    assert text([ppo], y=("objective/kl",)).startswith("objective/kl")


def test_kinds_of_a_summary(summary):
    assert text([summary]).startswith("Win rate against sft")
    assert text([summary], kind="ratings").startswith("Bradley-Terry ratings")
    assert text([summary], kind="matrix").startswith("Win rate of row over column")
    assert text([summary], title="Mine").startswith("Mine")


def test_reward_against_kl_with_a_fit(ppo, tmp_path):
    drawn = text([ppo], kind="kl", sqrt_kl=True, fit=True)
    assert "Reward against KL" in drawn
    assert "α = 2.00" in drawn or "fit: α" in drawn
    curve = tmp_path / "bon.json"
    points = [
        {"n": n, "kl": k, "score": 2 * k**0.5 - 0.5 * k}
        for n, k in ((1, 0.0), (2, 0.19), (4, 0.64), (8, 1.2))
    ]
    curve.write_text(json.dumps({"best_of": points}))
    assert "fit: α = 2.00, β = 0.50, R² = 1.00" in text([curve], fit=True)
    both = text([ppo, curve], kind="kl")
    assert "ppo" in both
    assert "bon" in both


def test_labels_of_runs_with_equal_names(tmp_path):
    for path in ("a/ppo", "b/ppo"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "metrics.jsonl").write_text('{"step": 1, "lr": 1}\n{"step": 2, "lr": 2}\n')
    drawn = text([tmp_path / "a/ppo", tmp_path / "b/ppo"])
    assert "a/ppo" in drawn
    assert "b/ppo" in drawn
    assert "old" in text([tmp_path / "a/ppo", tmp_path / "b/ppo"], name=("old", "new"))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_into_a_file(ppo, tmp_path, suffix):
    path = tmp_path / f"curves.{suffix}"
    assert text([ppo], output=str(path)) == ""
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    with pytest.raises(CannotCreate, match="exists"):
        text([ppo], output=str(path))
    before = path.read_bytes()
    text([ppo], output=str(path), force=True)
    assert path.read_bytes() == before


def test_half_a_last_line_is_left_out(ppo):
    path = ppo / "metrics.jsonl"
    whole = text([ppo])
    path.write_text(path.read_text() + '{"step": 40, "objec')
    assert text([ppo]) == whole


def test_records_of_a_python_caller():
    drawn = "".join(run([{"step": 1, "lr": 1.0}, {"step": 2, "lr": 2.0}], Config(width=60)))
    assert drawn.startswith("Learning rate")


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (
            {"y": ("objective/score",)},
            "-y: no metric is called objective/score",
            "did you mean objective/scores?",
        ),
        ({"x": "zzz"}, "-x: no metric is called zzz", "there are objective/kl, objective/scores, step"),
        ({"output": "a.pdf"}, "--output: a.pdf: neither .png nor .svg", None),
        ({"name": ("a", "b")}, "--name: 2 names for 1 inputs", None),
    ],
)
def test_usage(ppo, settings, message, hint):
    with pytest.raises(UsageError) as caught:
        text([ppo], **settings)
    assert str(caught.value) == message
    assert caught.value.hint == hint


def test_wrong_kinds(ppo, summary):
    with pytest.raises(UsageError, match="several kinds: curves, winrate"):
        text([ppo, summary])
    with pytest.raises(DataError, match="not a summary of eval-winrate"):
        text([ppo], kind="ratings")
    with pytest.raises(UsageError, match="-y: means nothing for winrate"):
        text([summary], y=("x",))
    with pytest.raises(UsageError, match="no metric is called objective/kl"):
        list(run([{"step": 1, "lr": 1.0}], Config(kind="kl")))


def test_bad_files(tmp_path):
    with pytest.raises(InputMissing):
        text([tmp_path / "none.jsonl"])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="nothing to draw"):
        text([empty])
    other = tmp_path / "samples.jsonl"
    other.write_text('{"prompt": "p", "completion": "c"}\n' * 2)
    with pytest.raises(DataError, match="these are no metrics"):
        text([other])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:2"):
        text([bad])


def test_the_command_in_a_pipe(summary, tmp_path):
    environ = {**os.environ, "COLUMNS": "60", "LC_ALL": "C"}
    command = [sys.executable, "-m", "rlhfkit", "plot", "-"]
    with open(summary) as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 60
