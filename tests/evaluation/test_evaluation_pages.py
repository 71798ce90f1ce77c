"""The examples on the pages of the commands about results are run and compared with what stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "commands"
#: files that an example has and does not show
HIDDEN = {
    "length.py": "import json, sys\nfor line in sys.stdin:\n"
    "    print(json.dumps({'score': len(json.loads(line)['completion'])}), flush=True)\n",
    "winrate.json": json.dumps(
        {
            "baseline": "sft",
            "models": {
                "gpt": {"win_rate": 0.233, "ci_low": 0.2, "ci_high": 0.27},
                "sft": {"win_rate": 0.5, "ci_low": 0.5, "ci_high": 0.5},
                "ppo": {"win_rate": 0.64, "ci_low": 0.59, "ci_high": 0.68},
            },
            "bradley_terry": {},
        }
    ),
}


def examples(page):
    """(command, expected output) of the console blocks of a page."""
    for block in re.findall(r"^```console\n(.*?)^```", (PAGES / page).read_text(), re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            lines = part.splitlines()
            last = next(
                i for i in range(len(lines)) if i + 1 == len(lines) or not lines[i + 1].startswith(">")
            )
            command = "\n".join([lines[0], *(line[1:] for line in lines[1 : last + 1])])
            yield command, "\n".join(lines[last + 1 :])


def files_shown(page):
    """Files that the page shows with `cat`, by name."""
    for command, shown in examples(page):
        if command.startswith("cat "):
            names = command.split("#")[0].split()[1:]
            lines = shown.splitlines()
            size = len(lines) // len(names)
            for i, name in enumerate(names):
                yield name, "\n".join(lines[i * size : (i + 1) * size]) + "\n"


@pytest.mark.parametrize("page", ["eval-winrate.md", "rank.md", "plot.md", "agreement.md", "best-of.md"])
def test_examples(page, tmp_path):
    for name, text in (*HIDDEN.items(), *files_shown(page)):
        (tmp_path / name).write_text(text)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "rlhfkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rlhfkit "$@"\n')
    program.chmod(0o755)
    environ = {
        **os.environ,
        "PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }
    ran = 0
    for command, expected in examples(page):
        if command.startswith("cat "):
            continue
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environ,
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr or done.stdout
        told = [
            line for line in (done.stderr or "").splitlines() if not re.match(r"(judge|rank|best-of): ", line)
        ]
        shown = "\n".join([*done.stdout.splitlines(), *told])
        pattern = r".*".join(re.escape(piece) for piece in expected.rstrip("\n").split("..."))
        assert re.fullmatch(pattern, shown, re.S), f"{command}\n{shown}"
        ran += 1
    assert ran
