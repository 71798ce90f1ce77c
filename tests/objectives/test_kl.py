import math
from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhfkit.objectives.kl import AdaptiveKL, best_of_n_expected, best_of_n_kl, token_kl

V = 4


def two_token_models(seed: int) -> tuple[torch.Tensor, ...]:
    """Policy and reference over strings of two tokens: first-token (V,) and second-token (V, V) log-probs."""
    g = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=g, dtype=torch.float64).log_softmax(-1) for shape in ((V,), (V, V)) * 2
    )


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_average_to_the_exact_kl_over_all_strings(seed: int) -> None:
    p1, p2, q1, q2 = two_token_models(seed)
    strings = list(product(range(V), repeat=2))
    prob = torch.tensor([(p1[a] + p2[a, b]).exp() for a, b in strings])
    exact = sum(
        float(p * math.log(p / (q1[a] + q2[a, b]).exp())) for p, (a, b) in zip(prob, strings, strict=True)
    )
    policy = torch.stack([torch.stack([p1[a], p2[a, b]]) for a, b in strings])  # (16, 2)
    reference = torch.stack([torch.stack([q1[a], q2[a, b]]) for a, b in strings])
    mask = torch.ones_like(policy, dtype=torch.bool)
    for estimator in ("k1", "k3"):
        mean = (prob[:, None] * token_kl(policy, reference, mask, estimator)).sum()
        assert mean.item() == pytest.approx(exact, abs=1e-5)
    assert (token_kl(policy, reference, mask, "k3") >= 0).all()
    assert (token_kl(policy, reference, mask, "k1") < 0).any()


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_estimators_by_formula(logprob: float, ref: float) -> None:
    x = logprob - ref
    at, to = (torch.tensor([[value]], dtype=torch.float64) for value in (logprob, ref))
    mask = torch.tensor([[True]])
    assert token_kl(at, to, mask).item() == pytest.approx(x)
    assert token_kl(at, to, mask, "k2").item() == pytest.approx(x * x / 2)
    assert token_kl(at, to, mask, "k3").item() == pytest.approx(math.exp(-x) - 1 + x, abs=1e-9)
    assert token_kl(at, to, mask, "k3").item() >= 0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_equal_models_have_no_kl(estimator: str) -> None:
    logprobs = torch.randn(3, 4)
    assert (
        token_kl(logprobs, logprobs.clone(), torch.ones(3, 4, dtype=torch.bool), estimator).abs().max() == 0
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_prompt_length_and_padding_do_not_touch_the_kl_of_a_response(estimator: str) -> None:
    policy, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    alone = token_kl(policy, reference, torch.tensor([[True, True]]), estimator).sum()
    prompt, pad = torch.full((1, 3), -7.0), torch.full((1, 2), torch.nan)
    mask = torch.tensor([[False] * 3 + [True] * 2 + [False] * 2])
    padded = token_kl(
        torch.cat([prompt, policy, pad], 1), torch.cat([-prompt, reference, pad], 1), mask, estimator
    )
    assert padded.sum().item() == pytest.approx(alone.item(), abs=1e-6)
    assert padded[~mask].abs().sum() == 0


@pytest.mark.parametrize(
    ("kl", "want"), [(12.0, 0.151536), (6.0, 0.15), (0.0, 0.148464), (6.6, 0.15 * 1.00512)]
)
def test_adaptive_kl_golden(kl: float, want: float) -> None:
    controller = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    assert controller.update(kl, 512) == pytest.approx(want, abs=1e-7)
    assert controller.coef == pytest.approx(want, abs=1e-7)


def test_adaptive_kl_settles_where_the_kl_meets_its_target() -> None:
    controller = AdaptiveKL(0.01, target=6.0, horizon=1000)
    for _ in range(500):  # a policy whose KL falls as the coefficient rises
        controller.update(1.2 / controller.coef, 100)
    assert controller.coef == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize(("n", "kl"), [(1, 0.0), (4, 0.636), (16, 1.835)])
def test_best_of_n_kl_golden(n: int, kl: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-3)


def every_subset(proxy: list[float], gold: list[float], n: int) -> float:
    """Mean over all subsets of the gold score of the favourite; ties for favourite averaged."""
    means = []
    for subset in combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        favourites = [gold[i] for i in subset if proxy[i] == best]
        means.append(math.fsum(favourites) / len(favourites))
    return math.fsum(means) / len(means)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(-10, 10)), min_size=1, max_size=7),
    st.data(),
)
def test_best_of_n_equals_the_mean_over_all_subsets(
    samples: list[tuple[int, float]], data: st.DataObject
) -> None:
    proxy, gold = [float(p) for p, _ in samples], [g for _, g in samples]
    n = data.draw(st.integers(1, len(samples)))
    assert best_of_n_expected(proxy, gold, n) == pytest.approx(every_subset(proxy, gold, n), abs=1e-9)


def test_best_of_1_is_the_mean_and_best_of_all_the_favourite() -> None:
    proxy, gold = [0.1, 0.9, 0.5], [1.0, 2.0, 6.0]
    assert best_of_n_expected(proxy, gold, 1) == pytest.approx(3.0)
    assert best_of_n_expected(proxy, gold, 3) == 2.0


def test_best_of_n_of_many_samples_does_not_overflow() -> None:
    scores = [i / 5000 for i in range(5000)]
    # the largest of n uniforms has mean n / (n + 1)
    assert best_of_n_expected(scores, scores, 1000) == pytest.approx(1000 / 1001, abs=1e-3)
