"""Scaling of scores against numpy over everything seen, on one process and on several."""

from __future__ import annotations

import numpy as np
import pytest

from rlhfkit.engine.dist import Dist
from rlhfkit.engine.ppo import Payment, pay
from rlhfkit.engine.reward_scale import ScoreScale
from rlhfkit.engine.rollout import Episode

ROLLOUTS = [np.random.default_rng(n).normal(3 + n, 0.5 + n, size=n) for n in (5, 2, 9, 4)]


def seen_before(over: str, index: int) -> np.ndarray:
    """The scores whose deviation counts at a rollout."""
    return {
        "batch": ROLLOUTS[index],
        "running": np.concatenate(ROLLOUTS[: index + 1]),
        "first": ROLLOUTS[0],
    }[over]


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("over", ["batch", "running", "first"])
def test_deviation_and_mean_of_what_was_seen(over: str, offset: float) -> None:
    scale = ScoreScale(over, shifted=True)  # type: ignore[arg-type]
    for index, scores in enumerate(ROLLOUTS):
        scale.see((scores + offset).tolist(), Dist())
        want = seen_before(over, index) + offset
        assert scale.divisor == pytest.approx(np.std(want, ddof=1), rel=1e-8)
        assert scale.shift == pytest.approx(want.mean(), rel=1e-12)
        # nothing but the three numbers is needed to go on
        scale = ScoreScale(over, True, **scale.state())  # type: ignore[arg-type]


def test_the_statistics_span_all_processes() -> None:
    class Twice(Dist):
        """Two processes with the same scores."""

        def sum_dict(self, sums: dict[str, float]) -> dict[str, float]:
            return {name: 2 * value for name, value in sums.items()}

    scale = ScoreScale("running")
    scale.see([1.0, 4.0], Twice())
    assert scale.divisor == pytest.approx(np.std([1, 4, 1, 4], ddof=1))
    assert scale.shift == 0.0


@pytest.mark.parametrize("scores", [[2.0], [2.0, 2.0, 2.0]])
def test_without_a_spread_scores_stay(scores: list[float]) -> None:
    scale = ScoreScale("running")
    scale.see(scores, Dist())
    assert scale.divisor == 1.0


def episode(score: float, tokens: int, ended: bool) -> Episode:
    return Episode(0, 0, "", [1], list(range(tokens)), ended, scorer_score=score)


def test_scores_are_scaled_then_clipped_then_ends_are_looked_at() -> None:
    """By hand: mean 3, deviation 2 (of 1, 3, 5); the clip bounds what was scaled, the penalty is neither."""
    scale = ScoreScale("batch", shifted=True)
    scale.see([1.0, 3.0, 5.0], Dist())
    three = [episode(1.0, 4, True), episode(5.0, 4, True), episode(5.0, 4, False)]
    pay(three, Payment(7.0, "replace", reward_clip=0.75), scale)
    assert [e.score for e in three] == [-0.75, 0.75, -7.0]
    pay(three, Payment(None, "replace"), ScoreScale("batch", False, **scale.state()))
    assert [e.score for e in three] == [0.5, 2.5, 2.5]


def test_too_short_a_response_counts_as_one_without_an_end() -> None:
    three = [episode(2.0, n, True) for n in (1, 3, 4)]
    pay(three, Payment(1.0, "replace", min_tokens=3))
    assert [e.score for e in three] == [-1.0, 2.0, 2.0]
