"""Golden cases: tests/cases/<command>/<name>/ holds `cmd`, `expout`, `experr` and `status`.

`cmd` is a bash line, run with pipefail in a copy of the folder; `rlhfkit` and `python` mean this checkout.
`expout` and `experr` are what it must print; without `experr` standard error is not looked at. A file
`expected.NAME` is what a file NAME must hold afterwards. After a change that is meant to show:

    UPDATE_CASES=1 pytest tests/cli/test_cases.py     # then read the diff
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import TOP, environment

CASES = TOP / "tests" / "cases"
FOLDERS = sorted(path.parent for path in CASES.glob("*/*/cmd"))
PRELUDE = 'set -o pipefail; rlhfkit() { "$PYTHON" -m rlhfkit "$@"; }; python() { "$PYTHON" "$@"; };\n'


@pytest.mark.parametrize("case", FOLDERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_case(case: Path, tmp_path: Path):
    work = tmp_path / "work"
    shutil.copytree(case, work, ignore=shutil.ignore_patterns("cmd", "exp*", "status"))
    done = subprocess.run(
        ["bash", "-c", PRELUDE + (case / "cmd").read_text()],
        cwd=work,
        env=environment({"PYTHON": sys.executable}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )
    seen = {"expout": done.stdout, "experr": done.stderr, "status": b"%d\n" % done.returncode}
    for path in case.glob("expected.*"):
        seen[path.name] = (work / path.name.removeprefix("expected.")).read_bytes()
    if os.environ.get("UPDATE_CASES"):
        for name, content in seen.items():
            if content or (case / name).exists():
                (case / name).write_bytes(content)
        return
    if not (case / "experr").exists():
        del seen["experr"]
    wanted = {name: (case / name).read_bytes() if (case / name).exists() else b"" for name in seen}
    wanted["status"] = wanted["status"] or b"0\n"
    assert seen == wanted
