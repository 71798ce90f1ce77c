"""From logged rows and summaries to what a picture shows."""

import math

import pytest

from rlhfkit.ui import results
from rlhfkit.ui.curves import KNOWN, Run, curves, finite_rows, moving_average, reward_against_kl

ROWS = [
    {"step": 1, "loss/train": 2.0, "lr": 1e-5, "note": 7.0},
    {"step": 2, "loss/train": 1.0, "lr": 2e-5, "eval/loss": 1.5},
]


def test_known_metrics_in_panels():
    grid = curves([Run("sft", ROWS)])
    assert [panel.title for panel in grid.panels] == ["Loss", "Learning rate"]
    training, held_out = grid.panels[0].lines
    assert (training.label, held_out.label) == ("sft · training", "sft · held out")
    assert (training.style, held_out.style) == (0, 1)
    assert list(training.y) == [2.0, 1.0]
    assert list(held_out.x) == [2]


def test_named_metrics_and_overlaid_runs():
    grid = curves([Run("a", ROWS), Run("b", ROWS[:1])], names=["note", "lr"], x="step")
    assert [panel.title for panel in grid.panels] == ["note", "lr"]
    assert [line.label for line in grid.panels[1].lines] == ["a", "b"]
    assert [line.run for line in grid.panels[1].lines] == [0, 1]


def test_unknown_names():
    with pytest.raises(KeyError, match="loss/trian"):
        curves([Run("a", ROWS)], names=["loss/trian"])
    with pytest.raises(KeyError, match="time"):
        curves([Run("a", ROWS)], x="time")
    with pytest.raises(ValueError, match="no metric has more than its step"):
        curves([Run("a", [{"step": 1.0}])])


def test_files_of_other_programs_show_all_they_have():
    grid = curves([Run("a", [{"step": 1, "my/metric": 3.0, "other": 1.0}])])
    assert [panel.title for panel in grid.panels] == ["my/metric", "other"]


def test_at_most_nine_panels():
    row = {"step": 1.0, **{name: 1.0 for known in KNOWN for name in known.metrics}}
    assert len(curves([Run("a", [row])]).panels) == 9


def test_band_from_a_logged_standard_error():
    rows = [{"step": i, "accuracy": 0.6, "eval/accuracy": 0.7, "eval/accuracy_se": 0.01} for i in (1, 2)]
    _, held_out = curves([Run("rm", rows)]).panels[0].lines
    assert list(held_out.low) == pytest.approx([0.7 - 0.0196] * 2)
    assert list(held_out.high) == pytest.approx([0.7 + 0.0196] * 2)


def test_smoothing_keeps_the_raw_curve():
    rows = [{"step": i, "lr": float(i % 2)} for i in range(9)]
    line = curves([Run("a", rows)], smooth=3).panels[0].lines[0]
    assert list(line.raw) == [row["lr"] for row in rows]
    assert line.y[1] == pytest.approx(1 / 3)


def test_moving_average():
    assert moving_average([1, 2, 3, 4], 1) == [1, 2, 3, 4]
    assert moving_average([1, 2, 3, 4], 3) == [1.5, 2, 3, 3.5]
    assert moving_average([1, math.nan, 3], 3) == [1, 2, 3]
    assert math.isnan(moving_average([math.nan], 3)[0])


def test_reward_against_kl():
    rows = [
        {"step": i, "objective/kl": float(i * i), "objective/scores": float(i), "gold": 1.0} for i in range(5)
    ]
    panel = reward_against_kl(
        [Run("ppo", rows)], rewards={"objective/scores": "proxy", "gold": "gold"}, root=True
    )
    assert [line.label for line in panel.lines] == ["ppo · proxy", "ppo · gold"]
    assert list(panel.lines[0].x) == [0, 1, 2, 3, 4]
    assert panel.lines[0].points
    assert panel.x_label.startswith("√KL")


def test_only_finite_numbers_count():
    assert finite_rows([{"a": 1, "b": None, "c": "x", "d": math.inf, "e": True, "f": 2.5}]) == [
        {"a": 1.0, "f": 2.5}
    ]


SUMMARY = {
    "baseline": "sft",
    "models": {
        "sft": {"win_rate": 0.5, "ci_low": 0.5, "ci_high": 0.5},
        "ppo": {"win_rate": 0.7, "ci_low": 0.6, "ci_high": 0.8},
        "far": {"win_rate": None, "ci_low": None, "ci_high": None},
    },
    "bradley_terry": {
        "sft": {"rating": 900.0, "ci_low": 850.0, "ci_high": 950.0},
        "ppo": {"rating": 1100.0, "ci_low": 1050.0, "ci_high": 1150.0},
    },
    "head_to_head": {"sft": {"ppo": {"win_rate": 0.3, "n": 9}}, "ppo": {"sft": {"win_rate": 0.7, "n": 9}}},
}


def test_win_rate_bars():
    bars = results.win_rate_bars([("s", SUMMARY)])
    assert [(bar.label, bar.value, bar.low, bar.plain) for bar in bars.bars] == [
        ("sft", 0.5, None, True),
        ("ppo", 0.7, 0.6, False),
    ]
    assert bars.level == 0.5
    assert results.win_rate_bars([("s", SUMMARY), ("t", SUMMARY)]).series == ["s", "t"]


def test_ladder_and_matrix():
    assert results.rating_ladder([("s", SUMMARY)]).ladder
    matrix = results.win_matrix(SUMMARY)
    assert matrix.names == ["ppo", "sft"]
    assert matrix.values == [[None, 0.7], [0.3, None]]


def test_calibration_and_best_of():
    report = {
        "calibration": [
            {"pairs": 0, "accuracy": None, "promised": None},
            {"pairs": 100, "accuracy": 0.8, "promised": 0.75},
        ]
    }
    (line,) = results.calibration([("rm", report)]).lines
    assert (list(line.x), list(line.y)) == ([0.75], [0.8])
    assert line.low[0] == pytest.approx(0.8 - 1.96 * 0.04)
    curve = {
        "best_of": [
            {"n": 1, "kl": 0.0, "score": 1.0, "gold": 2.0},
            {"n": 4, "kl": 0.64, "score": 2.0, "gold": 2.5},
        ]
    }
    score, gold = results.best_of_n([("bon", curve)], root=True).lines
    assert list(score.x) == pytest.approx([0, 0.8])
    assert gold.label == "bon · gold"
