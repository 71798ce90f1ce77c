"""How the policy does on held-out prompts while PPO runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlhfkit.data.examples import PromptSet
from rlhfkit.engine.actors import EpisodeScorer
from rlhfkit.engine.draw import row_seed
from rlhfkit.engine.iteration import Iteration
from rlhfkit.engine.loop import Figures


class HeldOut:
    """Answers held-out prompts with the weights that would be saved now, and scores the answers.

    The same seeds every time, so that evaluations differ by the policy only.
    """

    def __init__(self, iteration: Iteration, data: PromptSet, judge: EpisodeScorer) -> None:
        self.iteration, self.data, self.judge = iteration, data, judge

    def __call__(self) -> Figures:
        """`eval/scores` with its standard error over prompts, `eval/length` and `eval/eos_rate`."""
        iteration = self.iteration
        dist, seed = iteration.setup.dist, iteration.config.seed
        mine = list(dist.share(len(self.data.records)))
        with self._saved_weights():
            episodes = iteration.answer(self.data, mine, mine, [row_seed(seed, "held out", i) for i in mine])
        self.judge.score(episodes)
        scores = [e.scorer_score for e in episodes]
        total = dist.sum_dict(
            {
                "n": float(len(episodes)),
                "score": sum(scores),
                "squared": sum(s * s for s in scores),
                "length": float(sum(len(e.response_ids) for e in episodes)),
                "eos": float(sum(e.ended for e in episodes)),
            }
        )
        n = total["n"]
        mean = total["score"] / n
        iteration.watch.look_at_evaluation(iteration.last_score, mean)
        return {
            "eval/scores": mean,
            "eval/scores_se": (max(total["squared"] / n - mean**2, 0.0) / max(n - 1, 1.0)) ** 0.5,
            "eval/length": total["length"] / n,
            "eval/eos_rate": total["eos"] / n,
        }

    @contextmanager
    def _saved_weights(self) -> Iterator[None]:
        """The average of the weights in the policy's place, if one is kept."""
        iteration = self.iteration
        if iteration.average is None:
            yield
            return
        live = iteration.policy_optimizer.live
        kept = {name: parameter.detach().clone() for name, parameter in live.items()}
        with torch.no_grad():
            for name, parameter in live.items():
                parameter.copy_(iteration.average.weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in live.items():
                    parameter.copy_(kept[name])
