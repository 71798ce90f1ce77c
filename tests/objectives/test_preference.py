import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhfkit.objectives.preference import best_of_k_loss, ranking_loss

#: tiers over 0..K-1, best first, as a strategy: each completion gets a rank, equal ranks are tied
tiers = st.lists(st.integers(0, 5), min_size=1, max_size=9).map(
    lambda ranks: [[i for i, r in enumerate(ranks) if r == rank] for rank in sorted(set(ranks))]
)


def pairs_of(ranking: list[list[int]]) -> list[tuple[int, int]]:
    place = {i: rank for rank, tier in enumerate(ranking) for i in tier}
    return [(a, b) for a in place for b in place if place[a] < place[b]]


def batch_of(rankings: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
    """Pairs and weights of several rankings whose completions follow one another."""
    pairs, weights, start = [], [], 0
    for ranking in rankings:
        found = pairs_of(ranking)
        pairs += [(start + winner, start + loser) for winner, loser in found]
        weights += [1 / len(found) for _ in found]
        start += sum(map(len, ranking))
    return torch.tensor(pairs).view(-1, 2).long(), torch.tensor(weights)


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


@given(st.lists(tiers, min_size=1, max_size=4))
def test_every_ranking_weighs_one_and_zero_scores_lose_ln_2(rankings: list[list[list[int]]]) -> None:
    pairs, weights = batch_of(rankings)
    untied = sum(len(ranking) > 1 for ranking in rankings)
    assert weights.sum().item() == pytest.approx(untied, abs=1e-5)
    total = sum(sum(map(len, ranking)) for ranking in rankings)
    loss, metrics = ranking_loss(torch.zeros(total, requires_grad=True), pairs, weights)
    assert loss.item() == pytest.approx(untied * 0.693147, abs=1e-4)
    assert metrics["accuracy"].item() == pytest.approx(untied / 2, abs=1e-5)
    assert metrics["pairs"].item() == len(pairs)


@given(tiers.filter(lambda t: len(t) > 1), st.integers(0, 1000))
def test_a_ranking_is_the_mean_of_its_single_pairs(ranking: list[list[int]], seed: int) -> None:
    scores = torch.randn(
        sum(map(len, ranking)), generator=torch.Generator().manual_seed(seed), requires_grad=True
    )
    pairs, weights = batch_of([ranking])
    loss, _ = ranking_loss(scores, pairs, weights)
    singles = [ranking_loss(scores, pair[None], torch.ones(1))[0] for pair in pairs]
    mean = torch.stack(singles).mean()
    assert loss.item() == pytest.approx(mean.item(), abs=1e-6)
    r = scores.tolist()
    by_hand = math.fsum(softplus(r[b] - r[a]) for a, b in pairs.tolist()) / len(pairs)
    assert loss.item() == pytest.approx(by_hand, abs=1e-5)
    got, want = (torch.autograd.grad(x, scores, retain_graph=True)[0] for x in (loss, mean))
    assert torch.allclose(got, want, atol=1e-6)
    # shift invariance
    shifted, _ = ranking_loss(scores + 3.0, pairs, weights)
    assert shifted.item() == pytest.approx(loss.item(), abs=1e-5)
    assert got.sum().item() == pytest.approx(0, abs=1e-6)


def test_all_tied_rankings_contribute_nothing() -> None:
    scores = torch.randn(4, requires_grad=True)
    loss, metrics = ranking_loss(scores, torch.empty(0, 2, dtype=torch.long), torch.empty(0))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 0, 0, 0]
    assert all(math.isfinite(value.item()) for value in metrics.values())


def test_a_big_ranking_weighs_no_more_than_a_small_one() -> None:
    nine, four = [[i] for i in range(9)], [[i] for i in range(4)]
    scores = torch.zeros(13, requires_grad=True)
    pairs, weights = batch_of([nine, four])
    ranking_loss(scores, pairs, weights)[0].backward()
    assert scores.grad is not None
    # the best completion beats all K - 1 others: -(K - 1) / 2 / C(K, 2) = -1 / K
    assert scores.grad[0].item() == pytest.approx(-1 / 9, abs=1e-6)
    assert scores.grad[9].item() == pytest.approx(-1 / 4, abs=1e-6)


def test_rankings_of_several_micro_batches_add_up() -> None:
    torch.manual_seed(3)
    rankings = [[[0], [1, 2]], [[2], [0], [1], [3]]]
    scores = torch.randn(7, requires_grad=True)
    whole, _ = ranking_loss(scores, *batch_of(rankings))
    parts = [
        ranking_loss(scores[s], *batch_of([r]))[0]
        for s, r in zip((slice(0, 3), slice(3, 7)), rankings, strict=True)
    ]
    got, want = (torch.autograd.grad(x, scores)[0] for x in (sum(parts), whole))
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)
    assert torch.allclose(got, want, atol=1e-6)


def test_margin_centering_and_metrics_by_hand() -> None:
    scores = torch.tensor([2.0, 0.5, -1.0])
    pairs, weights = torch.tensor([[0, 1], [2, 1]]), torch.tensor([0.5, 0.5])
    loss, metrics = ranking_loss(scores, pairs, weights, margins=torch.tensor([1.0, 0.0]), center_coef=0.01)
    # gaps 1.5 and -1.5; sums 2.5 and -0.5
    want = 0.5 * (softplus(-(1.5 - 1.0)) + softplus(1.5)) + 0.01 * 0.5 * (2.5**2 + 0.5**2)
    assert loss.item() == pytest.approx(want, abs=1e-6)
    assert metrics["accuracy"].item() == 0.5
    assert metrics["pair_accuracy"].item() == 1
    assert metrics["chosen_rewards"].item() == pytest.approx(0.5)
    assert metrics["rejected_rewards"].item() == pytest.approx(0.5)
    assert metrics["margin"].item() == pytest.approx(0)


def test_large_scores_stay_finite() -> None:
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss, _ = ranking_loss(scores, torch.tensor([[0, 1]]), torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert scores.grad is not None
    assert scores.grad.tolist() == [-1, 1]


@pytest.mark.parametrize("flip", [False, True])
def test_the_sign_learns_32_pairs_and_flipped_labels_the_opposite(flip: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(64, 80)  # more features than completions: separable
    pairs = torch.arange(64).view(32, 2)
    truth = pairs
    if flip:
        pairs = pairs.flip(1)
    weight = torch.zeros(80, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        ranking_loss(features @ weight, pairs, torch.ones(32))[0].backward()
        optimizer.step()
    _, metrics = ranking_loss(features @ weight, truth, torch.ones(32))
    accuracy = metrics["pair_accuracy"].item() / 32
    assert accuracy <= 0.01 if flip else accuracy >= 0.99
    assert (metrics["chosen_rewards"] > metrics["rejected_rewards"]) == (not flip)


def test_best_of_k_is_the_cross_entropy_of_each_ranking() -> None:
    torch.manual_seed(2)
    scores = torch.randn(7, requires_grad=True)
    rankings = torch.tensor([0, 1, 0, 1, 1, 0, 1])  # interleaved on purpose
    shares = torch.tensor([0.0, 0.5, 1.0, 0.0, 0.5, 0.0, 0.0])
    loss, _ = best_of_k_loss(scores, rankings, shares)
    r = [math.exp(x) for x in scores.tolist()]
    z0, z1 = r[0] + r[2] + r[5], r[1] + r[3] + r[4] + r[6]
    want = -math.log(r[2] / z0) - 0.5 * (math.log(r[1] / z1) + math.log(r[4] / z1))
    assert loss.item() == pytest.approx(want, abs=1e-5)
    grad = torch.autograd.grad(loss, scores)[0]
    assert grad.sum().item() == pytest.approx(0, abs=1e-6)
    assert grad[0].item() == pytest.approx(r[0] / z0, abs=1e-6)
    assert grad[1].item() == pytest.approx(r[1] / z1 - 0.5, abs=1e-6)


def test_best_of_two_equals_the_pairwise_loss() -> None:
    scores = torch.tensor([0.3, -1.2, 4.0, 5.0])
    loss, metrics = best_of_k_loss(scores, torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0, 1, 0]))
    want, _ = ranking_loss(scores, torch.tensor([[0, 1], [2, 3]]), torch.ones(2))
    assert loss.item() == pytest.approx(want.item(), abs=1e-6)
    assert metrics["accuracy"].item() == 1


def test_best_of_k_of_ties_and_of_equal_scores() -> None:
    loss, _ = best_of_k_loss(torch.randn(3), torch.zeros(3, dtype=torch.long), torch.zeros(3))
    assert loss.item() == 0
    loss, metrics = best_of_k_loss(
        torch.zeros(4), torch.zeros(4, dtype=torch.long), torch.tensor([1.0, 0, 0, 0])
    )
    assert loss.item() == pytest.approx(math.log(4), abs=1e-6)
    assert metrics["accuracy"].item() == 0.25
    loss, _ = best_of_k_loss(torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0))
    assert loss.item() == 0
