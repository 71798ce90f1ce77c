"""Plain words for the known ways in which PPO goes wrong, each said once per run."""

from __future__ import annotations

from collections.abc import Mapping

from rlhfkit import context

#: A KL this many standard errors below 0 is no noise.
NOISE = 4.0
EARLY = 10  # iterations in which a value network may still be poor


class Watch:
    """Looks at the figures of every iteration and warns of what it recognises."""

    def __init__(self, *, exact: bool) -> None:
        #: ratios deviate from 1 by rounding when the model computes in low precision
        self.ratio_tolerance = 1e-3 if exact else 0.2
        self._said: set[str] = set()
        self._first_value_loss: float | None = None
        self._held_out: list[tuple[float, float]] = []  # (training score, held-out score)
        self._iterations = 0

    def look(self, figures: Mapping[str, float]) -> None:
        """One iteration's figures."""
        self._iterations += 1
        kl, error = figures["objective/kl"], figures["objective/kl_se"]
        if kl < -NOISE * error and kl < -1e-3:
            self._say(
                "negative-kl",
                f"the KL to the reference is {kl:.3f} nats, negative beyond noise: tokens are not "
                "drawn from the distribution whose log-probabilities are computed; check that --ref is the "
                "model that PPO started from",
            )
        deviation = abs(figures["policy/ratio_max_first"] - 1)
        if deviation > self.ratio_tolerance:
            self._say(
                "ratio",
                f"the probability ratio of the first minibatch is off by {deviation:.3g} though nothing has "
                "changed yet: forward passes do not repeat; try --dtype float32",
            )
        if figures["response/eos_rate"] < 0.05:
            self._say(
                "eos",
                f"only {figures['response/eos_rate']:.0%} of the answers end by themselves: raise "
                "--max-new-tokens, check that the demonstrations of sft ended in the end token "
                "(`rlhfkit sft --dry-run` shows it), and keep --missing-eos-penalty on",
            )
        self._look_at_values(figures)

    def _look_at_values(self, figures: Mapping[str, float]) -> None:
        loss = figures["loss/value_avg"]
        if self._first_value_loss is None:
            self._first_value_loss = max(loss, 1e-3)
        if self._iterations > EARLY and loss > 100 * self._first_value_loss:
            self._say(
                "value",
                f"the value loss has grown from {self._first_value_loss:.3g} to {loss:.3g}: lower "
                "--value-lr, or bound the reward with --reward-clip",
            )

    def look_at_evaluation(self, training_score: float, held_out_score: float) -> None:
        """One evaluation: the latest training reward and the held-out one."""
        self._held_out.append((training_score, held_out_score))
        if len(self._held_out) < 3:
            return
        (a, x), (b, y), (c, z) = self._held_out[-3:]
        if a < b < c and x > y > z:
            self._say(
                "over-optimisation",
                f"the training reward rises ({a:.3g}, {b:.3g}, {c:.3g}) while the held-out one "
                f"falls ({x:.3g}, {y:.3g}, {z:.3g}): the reward is being over-optimised; raise --kl-coef, "
                "stop earlier, or train a new reward model on samples of this policy",
            )

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            context.warn(text)
