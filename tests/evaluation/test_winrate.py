"""Win rates against pandas-free recomputation by hand, and their invariances (I44)."""

import json

import numpy as np
import pytest
from scipy import stats

from rlhfkit.evaluation.winrate import Judgements, Method, summarise


def judgements(rows, groups=None):
    """From (a, b, preference, prompt[, length a, length b[, a_first, b_first]])."""
    names = list(dict.fromkeys(n for row in rows for n in row[:2]))
    columns = [list(c) for c in zip(*[tuple(row) + (np.nan,) * (8 - len(row)) for row in rows], strict=True)]
    number = {n: i for i, n in enumerate(names)}
    return Judgements(
        tuple(names),
        np.array([number[n] for n in columns[0]]),
        np.array([number[n] for n in columns[1]]),
        preference=np.array(columns[2], dtype=float),
        prompts=np.array(columns[3]),
        length_a=np.array(columns[4], dtype=float),
        length_b=np.array(columns[5], dtype=float),
        a_first=np.array(columns[6], dtype=float),
        b_first=np.array(columns[7], dtype=float),
        groups=groups or {},
    )


def summary(rows, baseline="base", groups=None, **method):
    return summarise(judgements(rows, groups), baseline, Method(**method))


ROWS = [("ppo", "base", p, i, 30, 20) for i, p in enumerate([1, 1, 1, 0.5, 0, 1, 0.5, 0.75])]


def test_counts_and_rates_as_alpaca_eval_has_them():
    ppo = summary(ROWS)["models"]["ppo"]
    values = [1, 1, 1, 0.5, 0, 1, 0.5, 0.75]
    assert ppo["win_rate"] == pytest.approx(np.mean(values), abs=1e-12)
    assert ppo["standard_error"] == pytest.approx(stats.sem(values), abs=1e-12)
    assert (ppo["wins"], ppo["losses"], ppo["ties"], ppo["n"]) == (5, 1, 2, 8)
    assert ppo["ci_low"] < ppo["win_rate"] < ppo["ci_high"]
    assert ppo["avg_length"] == 30
    assert ppo["length_controlled_winrate"] is None


def test_baseline_against_itself():
    found = summary(ROWS, length_control=True)["models"]["base"]
    assert (found["win_rate"], found["ci_low"], found["ci_high"], found["standard_error"]) == (
        0.5,
        0.5,
        0.5,
        0,
    )
    assert found["length_controlled_winrate"] == 0.5
    assert found["avg_length"] == 20


def test_both_directions_add_to_one():
    one = summary(ROWS)["models"]["ppo"]
    two = summary(ROWS, baseline="ppo")["models"]["base"]
    assert one["win_rate"] + two["win_rate"] == pytest.approx(1, abs=1e-12)
    assert (one["wins"], one["losses"], one["ties"]) == (two["losses"], two["wins"], two["ties"])
    assert one["standard_error"] == pytest.approx(two["standard_error"])


def test_sides_are_turned():
    turned = [(b, a, 1 - p, i, lb, la) for a, b, p, i, la, lb in ROWS]
    one, two = summary(ROWS)["models"]["ppo"], summary(turned)["models"]["ppo"]
    assert one == two


def test_order_of_judgements_changes_only_elo():
    rng = np.random.default_rng(0)
    rows = [(m, "base", float(rng.integers(0, 2)), i, 10 + i, 20) for i in range(50) for m in ("x", "y")]
    one = summary(rows, length_control=True)
    two = summary([rows[i] for i in rng.permutation(len(rows))], length_control=True)
    for name in ("x", "y", "base"):
        assert one["models"][name]["win_rate"] == pytest.approx(two["models"][name]["win_rate"])
        assert one["bradley_terry"][name]["theta"] == pytest.approx(two["bradley_terry"][name]["theta"])
    assert one["models"]["x"]["length_controlled_winrate"] == pytest.approx(
        two["models"]["x"]["length_controlled_winrate"]
    )


def test_another_model_changes_no_interval():
    more = [*ROWS, ("other", "base", 1.0, 0), ("other", "base", 0.0, 1)]
    assert summary(more)["models"]["ppo"] == summary(ROWS)["models"]["ppo"]


def test_same_seed_same_interval_and_another_seed_another():
    assert summary(ROWS, seed=1) == summary(ROWS, seed=1)
    assert summary(ROWS, seed=1)["models"]["ppo"]["ci_low"] == pytest.approx(
        summary(ROWS, seed=2)["models"]["ppo"]["ci_low"], abs=0.1
    )


def test_several_comparisons_of_a_prompt_are_one_cluster():
    rows = [("ppo", "base", p, i) for i, p in enumerate([1, 0, 1, 1, 0]) for _ in range(4)]
    ppo = summary(rows)["models"]["ppo"]
    assert ppo["standard_error"] == pytest.approx(stats.sem([1, 0, 1, 1, 0]))
    assert (ppo["n"], ppo["prompts"]) == (20, 5)


def test_head_to_head_and_bradley_terry_of_two():
    rows = [("a", "b", 1.0, i) for i in range(30)] + [("a", "b", 0.0, i) for i in range(30, 40)]
    found = summary(rows, baseline="b")
    assert found["head_to_head"]["a"]["b"]["win_rate"] == 0.75
    assert found["head_to_head"]["b"]["a"]["win_rate"] == 0.25
    assert found["head_to_head"]["b"]["a"]["wins"] == 10
    ratings = found["bradley_terry"]
    assert ratings["a"]["rating"] - ratings["b"]["rating"] == pytest.approx(400 * np.log10(3))
    assert ratings["a"]["theta"] + ratings["b"]["theta"] == pytest.approx(0, abs=1e-12)
    assert ratings["a"]["ci_low"] < ratings["a"]["rating"] < ratings["a"]["ci_high"]
    assert found["bradley_terry_prior"] == 0
    assert found["connected"]


def test_nothing_is_ever_nan():
    rows = [("a", "b", 1.0, 0), ("c", "d", 1.0, 0)]  # one prompt, unbeaten, two tables
    found = summary(rows, baseline="a", length_control=True)
    text = json.dumps(found, allow_nan=False)
    assert "NaN" not in text
    assert not found["connected"]
    assert found["bradley_terry_prior"] == 1.0
    assert found["models"]["c"]["win_rate"] is None  # never met the baseline
    assert found["models"]["b"]["standard_error"] is None


def test_paired_test_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, 40) / 2, rng.integers(0, 3, 40) / 2
    rows = [("base", "x", 1 - v, i) for i, v in enumerate(x)] + [("y", "base", v, i) for i, v in enumerate(y)]
    tests = {(t["a"], t["b"]): t for t in summary(rows)["paired"]}
    found = tests["x", "y"]
    assert found["difference"] == pytest.approx((x - y).mean())
    assert found["p_value"] == pytest.approx(stats.ttest_rel(x, y).pvalue)
    assert found["standard_error"] == pytest.approx(stats.sem(x - y))
    alone = tests["base", "x"]
    assert alone["difference"] == pytest.approx(0.5 - x.mean())
    assert alone["p_value"] == pytest.approx(stats.ttest_1samp(x, 0.5).pvalue)


def test_paired_test_uses_shared_prompts_only():
    rows = [("x", "base", v, i) for i, v in enumerate([1, 0, 1, 1])]
    rows += [("y", "base", v, i + 2) for i, v in enumerate([0, 1, 1, 1])]
    found = next(t for t in summary(rows)["paired"] if (t["a"], t["b"]) == ("x", "y"))
    assert found["prompts"] == 2
    assert found["difference"] == 0.5


def test_groups():
    kinds = ["hard", "easy"] * 4
    found = summary(ROWS, groups={"kind": kinds})["by"]["kind"]
    assert list(found) == ["easy", "hard"]
    assert found["easy"]["ppo"]["n"] == 4
    assert found["easy"]["ppo"]["win_rate"] == pytest.approx(np.mean([1, 0.5, 1, 0.75]))
    assert found["hard"]["ppo"]["win_rate"] == pytest.approx(np.mean([1, 1, 0, 0.5]))


def test_position_bias_in_one_row_or_two():
    nan = np.nan
    rows = [("a", "b", 0.5, i, nan, nan, 1.0, 0.0) for i in range(10)]  # whoever is first wins
    rows += [("a", "b", 1.0, i, nan, nan, 1.0, 1.0) for i in range(10, 20)]  # a wins either way
    bias = summary(rows, baseline="b")["position_bias"]
    assert bias["first_win_rate"] == 0.75
    assert bias["both_orders"] == 20
    assert bias["consistent"] == 0.5
    apart = [("a", "b", r[6], r[3], nan, nan, r[6], nan) for r in rows]
    apart += [("b", "a", 1 - r[7], r[3], nan, nan, 1 - r[7], nan) for r in rows]  # b shown first, named first
    assert summary(apart, baseline="b")["position_bias"]["consistent"] == 0.5
    assert summary(apart, baseline="b")["position_bias"]["first_win_rate"] == 0.75
    assert "position_bias" not in summary(ROWS)


def test_length_control_reports_its_fit():
    rng = np.random.default_rng(0)
    rows = [("m", "base", float(rng.integers(0, 2)), i, *rng.integers(10, 99, 2)) for i in range(80)]
    rows.append(("m", "base", 1.0, 80))  # no completions: left out of the regression only
    found = summary(rows, length_control=True)["models"]["m"]
    assert found["n"] == 81
    assert 0 < found["length_controlled_winrate"] < 1
    assert set(found["length_control"]) == {"standard_error", "theta", "phi", "ridge"}
    hard = summary(rows, length_control=True, difficulty=True)["models"]["m"]
    assert "psi" in hard["length_control"]


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 4])
def test_summary_intervals_cover_the_truth(each):
    """I44 end to end: the summary's interval over 1,000 simulated evaluations of 300 prompts."""
    rng = np.random.default_rng(each)
    covered = 0
    for _ in range(1000):
        quality = np.repeat(rng.beta(2.4, 1.6, 300), each)
        won = (rng.random(len(quality)) < quality).astype(float)
        prompts = np.repeat(np.arange(300), each)
        nan = np.full(len(won), np.nan)
        zero = np.zeros(len(won), dtype=int)
        table = Judgements(("m", "base"), zero, zero + 1, won, prompts, nan, nan, nan, nan)
        found = summarise(table, "base", Method(seed=int(rng.integers(1 << 30))))["models"]["m"]
        covered += found["ci_low"] <= 0.6 <= found["ci_high"]
    assert 930 <= covered <= 970
