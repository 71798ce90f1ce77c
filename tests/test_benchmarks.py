"""The benchmarks' own machinery: laps on request, failing sides, goals and the page."""

import json
from pathlib import Path

import pytest

from benchmarks.drive import Row, Side, measure
from benchmarks.goals import GOALS
from benchmarks.page import page
from benchmarks.rows import all_rows, flops_per_token

LOOP = "transformers loop, bf16 autocast"


def lap(rate: float, peak: float = 500) -> dict[str, object]:
    return {
        "seconds": 2.0,
        "units": 2 * rate,
        "steps": 1,
        "cpu": 4.0,
        "peak_mb": peak,
        "others": 0.0,
        "figures": {},
    }


def record(**rates: list[float]) -> dict[str, object]:
    sides = [
        {"side": name, "unit": "FLOP" if "matrix" in name else "token", "laps": [lap(r) for r in found]}
        for name, found in rates.items()
    ]
    about = {"row": "pretrain-a", "title": "T", "seconds": 1.0}
    about |= {"machine": "m", "date": "2026-01-01", "data": "real"}
    return {**about, "sides": sides}


def test_a_failing_side_does_not_cost_the_others(tmp_path: Path) -> None:
    sides = (
        Side("works", "peers:matrix_rate", {"size": 32}),
        Side("fails", "peers:loop", {"no such": "setting"}),
    )
    row = Row("r", "R", "FLOP", sides, laps=2, seconds=0.01, warm=1)
    works, fails = measure(row, tmp_path, threads=1, profile=False, say=lambda text: None)
    assert [lap["units"] % (40 * 32**3) for lap in works["laps"]] == [0, 0]
    assert works["laps"][0]["peak_mb"] > 10
    assert fails["laps"] == []
    assert fails["error"].startswith("TypeError: ")


def test_a_goal_compares_medians_with_the_fastest_peer() -> None:
    rates = {"rlhfkit": [300.0, 330.0, 900.0], LOOP: [200.0], "transformers Trainer, bf16": [100.0]}
    goal = GOALS[0]
    assert goal.judge({"pretrain-a": record(**rates)}).measured == "1.65 x"
    assert goal.judge({"pretrain-a": record(**rates)}).reached is True
    assert goal.judge({"pretrain-a": record(rlhfkit=[300.0], **{LOOP: [200.0]})}).reached is False
    assert goal.judge({"pretrain-a": record(rlhfkit=[300.0])}).reached is None


def test_the_page_takes_the_newest_record_and_says_what_is_missed() -> None:
    old, new = record(rlhfkit=[100.0], **{LOOP: [50.0]}), record(rlhfkit=[100.0], **{LOOP: [80.0]})
    new["sides"][0]["profile"] = [{"operator": "aten::mm", "share": 0.5, "calls": 3}]  # type: ignore[index]
    new["sides"].append({"side": "gone", "unit": "token", "laps": [], "error": "E: why"})  # type: ignore[attr-defined]
    text = page([json.loads(json.dumps(r)) for r in (old, new)], "command")
    assert "| pretraining a over transformers in bf16 | at least 1.60 x | 1.25 x | **no** |" in text
    assert "| pretraining a over nanoGPT | at least 3.30 x |  | not measured |" in text
    assert f"| {LOOP} | 80 (80..80) | 1.25 | 40 | 500 | 0% |" in text
    assert "| gone | not measured: E: why |" in text
    assert "| `aten::mm` | 50.0% | 3 |" in text


def test_operations_of_a_token() -> None:
    # 6 layers of 12 x 384^2 + 384 x 64 (a feed-forward of 1024 is 8/3 x 384) and 65 words: by hand
    weights = 6 * (4 * 384 * 384 + 3 * 384 * 1024) + 65 * 384
    assert flops_per_token("a") == 6 * weights + 12 * 6 * 384 * 256
    assert flops_per_token("a") / 1e6 == pytest.approx(71, abs=0.5)
    assert flops_per_token("b") / 1e6 == pytest.approx(661, abs=1)


def test_every_goal_has_a_row_and_its_sides() -> None:
    rows = {row.name: row for row in all_rows("nanoGPT")}
    for goal in GOALS:
        assert goal.row in {*rows, "tokenize", "records", "startup"}
    names = {side.name for row in rows.values() for side in row.sides}
    assert "rlhfkit --value-model shared" in names
