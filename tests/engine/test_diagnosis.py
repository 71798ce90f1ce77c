"""The warnings of PPO: said when the failure is there, not otherwise, and once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rlhfkit import context
from rlhfkit.engine.diagnosis import Watch

HEALTHY = {
    "objective/kl": 0.5,
    "objective/kl_se": 0.05,
    "policy/ratio_max_first": 1.0,
    "response/eos_rate": 0.9,
    "loss/value_avg": 0.2,
}


class Ear(context.Reporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def warn(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture
def ear() -> Iterator[Ear]:
    reporter = Ear()
    with context.surroundings(reporter, context.Invocation()):
        yield reporter


def test_a_healthy_run_is_left_in_peace(ear: Ear) -> None:
    watch = Watch(exact=True)
    for _ in range(30):
        watch.look(HEALTHY)
        watch.look({**HEALTHY, "objective/kl": -0.1})  # within two standard errors of 0
    for score in range(5):
        watch.look_at_evaluation(float(score), float(score))
    assert ear.heard == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective/kl": -0.5}, "negative beyond noise"),
        ({"policy/ratio_max_first": 1.01}, "ratio of the first minibatch"),
        ({"response/eos_rate": 0.01}, "end by themselves"),
    ],
)
def test_a_failure_is_named_once(ear: Ear, change: dict[str, float], words: str) -> None:
    watch = Watch(exact=True)
    for _ in range(3):
        watch.look({**HEALTHY, **change})
    assert len(ear.heard) == 1
    assert words in ear.heard[0]


def test_an_exploding_value_network_after_the_first_iterations(ear: Ear) -> None:
    watch = Watch(exact=True)
    for _ in range(10):
        watch.look({**HEALTHY, "loss/value_avg": 1.0})
    watch.look({**HEALTHY, "loss/value_avg": 101.0})
    assert "value loss has grown from 1 to 101" in ear.heard[0]


def test_over_optimisation_needs_three_evaluations_that_part(ear: Ear) -> None:
    watch = Watch(exact=True)
    watch.look_at_evaluation(1.0, 3.0)
    watch.look_at_evaluation(2.0, 2.0)
    assert ear.heard == []
    watch.look_at_evaluation(3.0, 1.0)
    assert "over-optimised" in ear.heard[0]


def test_low_precision_forgives_rounding(ear: Ear) -> None:
    Watch(exact=False).look({**HEALTHY, "policy/ratio_max_first": 1.05})
    assert ear.heard == []
