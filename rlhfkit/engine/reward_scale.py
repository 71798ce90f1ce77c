"""Scores of unknown scale, as a program gives them, brought to unit scale while PPO runs.

The KL coefficient and the missing-EOS penalty mean something only next to the size of a score. A reward model
can be put on a scale once (`train-rm --center-scale`); a program's scores are scaled here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlhfkit.engine.dist import Dist

#: A spread of scores below this is rounding, or there is none; scores are then left as they are.
LEAST_SPREAD = 1e-8


@dataclass
class ScoreScale:
    """What scores are divided by, and with `shifted` what is taken off them before.

    The standard deviation (with Bessel's correction) and mean of the scorer's scores: "batch", of this
    rollout; "running", of all rollouts so far, this one included; "first", of the first rollout. The last two
    are `scale_reward="running"` and `"ref"` of trlX, and "running" is `use_score_scaling` of TRL's older
    PPOTrainer, `shifted` its `use_score_norm`. Three numbers are all of its state; statistics span all
    processes.
    """

    over: Literal["batch", "running", "first"]
    shifted: bool = False
    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    def see(self, scores: Sequence[float], dist: Dist) -> None:
        """Take in this process's scores of one rollout."""
        if self.over == "first" and self.count:
            return
        sums = dist.sum_dict({"count": float(len(scores)), "total": math.fsum(scores)})
        count, mean = sums["count"], sums["total"] / sums["count"]
        squares = dist.sum_dict({"squares": math.fsum((s - mean) ** 2 for s in scores)})["squares"]
        if self.over == "batch":
            self.count, self.mean, self.squares = count, mean, squares
            return
        # Chan, Golub and LeVeque (1979): the moments of two sets from those of each, without cancellation.
        both, lead = self.count + count, mean - self.mean
        self.squares += squares + lead**2 * self.count * count / both
        self.mean += lead * count / both
        self.count = both

    @property
    def divisor(self) -> float:
        """The standard deviation; 1 while there is none."""
        spread = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return spread if spread > LEAST_SPREAD else 1.0

    @property
    def shift(self) -> float:
        """What is taken off a score before it is divided."""
        return self.mean if self.shifted else 0.0

    def state(self) -> dict[str, float]:
        """For a checkpoint; `ScoreScale(over, shifted, **state)` goes on from there."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}
