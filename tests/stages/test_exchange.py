"""The commands: an export to pairs, and tasks on standard output."""

import json
import subprocess
import sys


def rlhfkit(*words, **settings):
    command = [sys.executable, "-m", "rlhfkit", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def test_rank2pairs_reads_an_export(tmp_path):
    samples = {
        "id": 1,
        "prompt": "p",
        "completions": ["a", "b", "c"],
        "ranking": [[1], [0, 2]],
        "rater": "ann",
    }
    tasks = rlhfkit("exchange", "--to", "label-studio", input=json.dumps(samples))
    assert (tasks.returncode, tasks.stderr) == (0, "")
    (tmp_path / "export.json").write_text("[" + tasks.stdout + "]")
    pairs = rlhfkit("rank2pairs", str(tmp_path / "export.json"), "--from", "label-studio", "-q")
    assert [(p["chosen"], p["rejected"], p["rater"]) for p in map(json.loads, pairs.stdout.splitlines())] == [
        ("b", "a", "ann"),
        ("b", "c", "ann"),
    ]


def test_a_bad_export_names_file_and_task(tmp_path):
    (tmp_path / "export.json").write_text('[{"id": 3, "data": {}}]')
    done = rlhfkit("rank2pairs", "export.json", "--from", "label-studio", cwd=tmp_path)
    assert done.returncode == 65
    assert done.stderr == "export.json: task 3: error: task.data: expected one list of items with an id\n"
