"""The tutorial runs as it stands, on the real data, in a directory with a space in its name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[1]
DATA = Path(__file__).parents[2] / "shared" / "data"
PRELUDE = 'set -euo pipefail; rlhfkit() { "$PYTHON" -m rlhfkit "$@"; }; python() { "$PYTHON" "$@"; };\n'


def blocks() -> list[str]:
    """The shell blocks of the page, in order."""
    return re.findall(r"^```sh\n(.*?)^```", (TOP / "docs" / "tutorial.md").read_text(), re.M | re.S)


def test_every_command_takes_part() -> None:
    from rlhfkit.stages import names

    used = set(re.findall(r"\brlhfkit ([a-z0-9-]+)", "\n".join(blocks())))
    assert used == set(names()) - {"completion"}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not DATA.is_dir(), reason="the data are not here")
def test_the_tutorial(tmp_path: Path) -> None:
    work = tmp_path / "first steps"
    work.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RLHFKIT_")}
    env = {**kept, "PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(TOP), "DATA": str(DATA)}
    printed = []
    for block in blocks():
        done = subprocess.run(
            ["bash", "-c", PRELUDE + block],
            cwd=work,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        print(f"$ {block}{done.stderr[-2000:]}")
        assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"
        printed.append(done.stdout)

    # What the text says that one sees.
    assert [int(line) for out in printed for line in out.split() if line in {"3754", "504", "1218"}] == [
        3754,
        504,
        1218,
    ]
    plan = json.loads((work / "plan.json").read_text())
    assert plan["records"] == 1600
    metrics = lines(work / "base" / "metrics.jsonl")
    assert metrics[0]["loss/train"] == pytest.approx(6.93, abs=0.1)
    assert metrics[-1]["loss/train"] < 5
    report = json.loads((work / "rm" / "eval.json").read_text())
    assert set(report["accuracy_by_split"]) == {"gsm8k-solutions", "oasst-en100"}
    agreement = json.loads((work / "agreement.json").read_text())
    assert set(agreement["raters"]) == {"people", "rm"}
    scores = [m["objective/scores"] for m in lines(work / "ppo-verify" / "metrics.jsonl")]
    assert sum(scores[-3:]) > sum(scores[:3])
    winrate = json.loads((work / "winrate.json").read_text())
    assert set(winrate["models"]) == {"sft", "ppo-rm", "ppo-verify"}
    vicuna = json.loads((work / "vicuna.json").read_text())
    assert len(vicuna["models"]) == 7
    assert (work / "project" / "Makefile").is_file()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
