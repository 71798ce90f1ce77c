"""The commands in real pipes: from text to a win rate, with nothing on disk in between; signals, closed pipes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rlhfkit
from tests.conftest import answer, write_jsonl

if TYPE_CHECKING:
    from tests.conftest import Tiny

TOP = Path(__file__).parents[1]
GOLD = """\
import json, sys
for line in sys.stdin:
    record = json.loads(line)
    wanted = sorted(record["prompt"].removesuffix(" ->").split())
    words = record["completion"].split()
    right = sum(a == b for a, b in zip(words, wanted))
    print(json.dumps({"score": right / max(len(words), len(wanted))}), flush=True)
"""
#: A loaded machine takes its time over a dozen processes that import torch.
pytestmark = pytest.mark.timeout(900)
PRELUDE = 'set -euo pipefail; rlhfkit() { "$PYTHON" -m rlhfkit "$@"; }; python() { "$PYTHON" "$@"; };\n'


def environment() -> dict[str, str]:
    """Without settings that change results; `cmd:python` finds this interpreter."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RLHFKIT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **kept,
        "PATH": path,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(TOP),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }


def shell(
    script: str, cwd: Path, *, status: int = 0, timeout: float = 800
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-c", PRELUDE + script],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture
def work(tiny: Tiny, tmp_path: Path) -> Path:
    """A directory with a space in its name that holds the models, prompts and a gold scorer."""
    folder = tmp_path / "my work"
    folder.mkdir()
    (folder / "gold.py").write_text(GOLD)
    for name in ("base", "sft", "rm", "demos.jsonl", "prompts.jsonl", "rankings.jsonl"):
        (folder / name).symlink_to(tiny.root / name)
    return folder


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_pipe_from_prompts_to_a_reward_model(work: Path) -> None:
    done = shell(
        "rlhfkit sample prompts.jsonl -m sft -n 4 --max-new-tokens 8 -q"
        " | rlhfkit rank --by 'cmd:python gold.py' | rlhfkit rank2pairs"
        " | rlhfkit train-rm -m sft -o reward --lr 2e-3 --steps 8 --batch-size 16",
        work,
    )
    (summary,) = records(done.stdout)
    assert summary["output"] == "reward"
    assert summary["steps"] == 8
    assert not {"samples.jsonl", "pairs.jsonl"} & {p.name for p in work.iterdir()}
    made = {p.name for p in (work / "reward").iterdir()}
    assert made >= {"config.json", "model.safetensors", "tokenizer.json", "run.json", "metrics.jsonl"}

    # The same in Python, a file after each command, ends in the same weights.
    prompts = [str(work / "prompts.jsonl")]
    rlhfkit.sample(prompts, model=work / "sft", n=4, max_new_tokens=8, output=work / "samples.jsonl")
    gold = f"cmd:{shlex.quote(sys.executable)} '{work / 'gold.py'}'"
    rlhfkit.rank([work / "samples.jsonl"], by=gold, rater="cmd:python gold.py", output=work / "ranked.jsonl")
    pairs = list(rlhfkit.rank2pairs([work / "ranked.jsonl"]))
    assert {"prompt", "chosen", "rejected", "group"} <= pairs[0].keys()
    rlhfkit.train_rm(pairs, model=work / "sft", output=work / "again", lr=2e-3, steps=8, batch_size=16)
    weights = [(work / name / "model.safetensors").read_bytes() for name in ("reward", "again")]
    assert weights[0] == weights[1]


def test_from_text_to_a_win_rate(tiny: Tiny, work: Path) -> None:
    """Every trainer and filter in turn, PPO against a program, results judged by it and drawn."""
    prompts = [r["prompt"] for r in records((work / "prompts.jsonl").read_text())]
    (work / "corpus.txt").write_text("\n\n".join(p + answer(p) for p in prompts) + "\n")
    write_jsonl(work / "few.jsonl", [{"prompt": p, "id": n} for n, p in enumerate(prompts[:12])])
    done = shell(
        """
        rlhfkit train-tokenizer corpus.txt --vocab-size 300 --split blank-line -o 'to ken'
        rlhfkit tokenize corpus.txt --tokenizer 'to ken' --split blank-line -o corpus.safetensors
        rlhfkit pretrain corpus.safetensors --tokenizer 'to ken' -o made --layers 1 --hidden 16 --heads 2 \\
            --context 48 --steps 8 --batch-size 16
        cat demos.jsonl | rlhfkit sft - -m made -o tuned --steps 8 --batch-size 16 --lr 5e-3
        rlhfkit ppo few.jsonl -m tuned -r 'cmd:python gold.py' -o ppo --steps 2 --batch-size 12 \\
            --minibatches 2 --max-new-tokens 6 --ptx corpus.safetensors --ptx-coef 0.1 --lr 1e-3
        for model in tuned ppo; do
            rlhfkit sample few.jsonl -m $model --max-new-tokens 6 --seed 7 -o $model.jsonl
        done
        rlhfkit eval-winrate tuned.jsonl ppo.jsonl --judge 'cmd:python gold.py' --save-judgements judged.jsonl \\
            > summary.json
        rlhfkit plot summary.json -o winrate.png
        rlhfkit plot ppo/metrics.jsonl > curves.txt
        rlhfkit inspect ppo
        """,
        work,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    outputs = ["to ken", "corpus.safetensors", "made", "tuned", "ppo"]
    assert [line["output"] for line in lines if "output" in line][:5] == outputs
    summary = json.loads((work / "summary.json").read_text())
    assert summary["baseline"] == "tuned"
    assert summary["models"]["ppo"]["n"] == 12
    assert 0 <= summary["models"]["ppo"]["ci_low"] <= summary["models"]["ppo"]["ci_high"] <= 1
    assert len(records((work / "judged.jsonl").read_text())) == 12
    assert (work / "winrate.png").read_bytes().startswith(b"\x89PNG")
    assert (work / "curves.txt").read_text().strip()
    assert len(records((work / "ppo" / "metrics.jsonl").read_text())) == 2
    for name in ("made", "tuned", "ppo"):
        assert (work / name / "run.json").is_file()
        assert not (work / name / "checkpoints").exists()
    leftovers = [p for p in work.rglob("*") if p.name.endswith(".tmp")]
    assert leftovers == []


@pytest.mark.parametrize(
    "command",
    [
        "rlhfkit rank2pairs many.jsonl",
        "rlhfkit score many.jsonl -r 'cmd:python gold.py'",
        "rlhfkit rank many.jsonl --by 'cmd:python gold.py'",
        "rlhfkit sample prompts.jsonl -m sft -n 2 --max-new-tokens 4 --batch-size 4",
    ],
)
def test_a_reader_that_has_seen_enough_ends_the_pipe_silently(work: Path, command: str) -> None:
    lines = (work / "rankings.jsonl").read_text()
    (work / "many.jsonl").write_text(lines * 20)
    done = shell(f"{command} -q | head -1", work, status=141)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


FILTERS = {
    "rank2pairs": [],
    "score": ["-r", "cmd:python gold.py", "--batch-size", "1"],
    "rank": ["--by", "cmd:python gold.py", "--batch-size", "1"],
    "sample": ["-m", "sft", "--max-new-tokens", "4", "--batch-size", "1"],
}


@pytest.mark.parametrize("command", FILTERS)
def test_a_filter_that_fails_or_is_stopped_leaves_nothing(work: Path, command: str) -> None:
    """A bad record at the end, then SIGTERM while it waits for more; `out.jsonl` never appears."""
    good = (work / "rankings.jsonl").read_text().splitlines()[:5]
    (work / "bad.jsonl").write_text("\n".join([*good, '{"prompt": 5}', ""]))
    before = sorted(p.name for p in work.iterdir())
    words = [sys.executable, "-m", "rlhfkit", command, *FILTERS[command], "-o", "out.jsonl"]
    about: dict[str, Any] = {"cwd": work, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run([*words, "bad.jsonl"], check=False, **about)
    assert done.returncode == 65
    assert f"bad.jsonl:6: error: {'prompt' if command == 'sample' else ''}" in done.stderr
    assert sorted(p.name for p in work.iterdir()) == before

    with subprocess.Popen(words, stdin=subprocess.PIPE, **about) as process:
        assert process.stdin is not None
        process.stdin.write("\n".join([*good, ""]))
        process.stdin.flush()
        deadline = time.monotonic() + 300
        while sorted(p.name for p in work.iterdir()) == before:  # until it writes, aside
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        assert not (work / "out.jsonl").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert sorted(p.name for p in work.iterdir()) == before


def test_an_existing_output_stays_until_force_replaces_it_whole(work: Path) -> None:
    (work / "out.jsonl").write_text("precious\n")
    done = shell("rlhfkit rank2pairs rankings.jsonl -o out.jsonl", work, status=73)
    assert done.stderr.splitlines()[0] == "out.jsonl: error: exists already"
    assert (work / "out.jsonl").read_text() == "precious\n"
    shell("echo '{' | rlhfkit rank2pairs - rankings.jsonl --force -o out.jsonl", work, status=65)
    assert (work / "out.jsonl").read_text() == "precious\n"
    shell("rlhfkit rank2pairs rankings.jsonl --force -o out.jsonl --limit 2", work)
    assert len(records((work / "out.jsonl").read_text())) == 10


def test_a_failing_stage_fails_the_pipe_and_nothing_is_trained(work: Path) -> None:
    """A gold program that dies ends `rank` with 1; what it had written is too little, but is no error."""
    (work / "dies.py").write_text("import sys\nsys.exit('no gold today')\n")
    done = shell(
        "rlhfkit rank rankings.jsonl --by 'cmd:python dies.py' | rlhfkit rank2pairs"
        " | rlhfkit train-rm -m sft -o reward",
        work,
        status=65,  # the last to fail: no records reached the trainer
    )
    assert "no gold today" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (work / "reward").exists()
