import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhfkit.objectives.common import whiten
from rlhfkit.objectives.ppo import compute_rewards, gae, missing_eos, ppo_policy_loss, ppo_value_loss

NAN = math.nan


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def ragged_mask(generator: torch.Generator, rows: int = 4, width: int = 9) -> Tensor:
    """Contiguous responses of length >= 1 at random places: (rows, width)."""
    start = torch.randint(0, width, (rows, 1), generator=generator)
    length = torch.randint(1, width + 1, (rows, 1), generator=generator)
    places = torch.arange(width)
    return (places >= start) & (places < start + length)


def random_case(seed: int, count: int = 3) -> tuple[Tensor, ...]:
    """A mask and `count` random float64 tensors of its shape."""
    g = torch.Generator().manual_seed(seed)
    mask = ragged_mask(g)
    return mask, *(torch.randn(mask.shape, generator=g, dtype=torch.float64) for _ in range(count))


seeds = st.integers(0, 2**31)


# --- advantages -------------------------------------------------------------------------------------------


def test_gae_golden() -> None:
    advantages, returns = gae(row(0, 0, 1.0), row(0.5, 0.4, 0.3), ones(1, 3), 1.0, 0.95)
    assert advantages[0].tolist() == pytest.approx([0.43675, 0.565, 0.7], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([0.93675, 0.965, 1.0], abs=1e-6)


@given(seeds, st.floats(0.5, 1), st.floats(0, 1))
def test_gae_is_the_discounted_sum_of_td_errors(seed: int, gamma: float, lam: float) -> None:
    mask, rewards, values = random_case(seed, 2)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, kept in enumerate(mask.tolist()):
        places = [t for t, k in enumerate(kept) if k]
        r, v = [rewards[b, t].item() for t in places], [*(values[b, t].item() for t in places), 0.0]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(places))]
        for i, t in enumerate(places):
            want = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(places)))
            assert advantages[b, t].item() == pytest.approx(want, abs=1e-9)
            assert returns[b, t].item() == pytest.approx(want + v[i], abs=1e-9)
    assert advantages[~mask].abs().sum() + returns[~mask].abs().sum() == 0


@given(seeds)
def test_lambda_1_is_monte_carlo_and_lambda_0_is_one_step(seed: int) -> None:
    mask, rewards, values = random_case(seed, 2)
    clean_rewards, clean_values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    future = clean_rewards.flip(1).cumsum(1).flip(1)
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert torch.allclose(returns[mask], future[mask], atol=1e-5)
    assert torch.allclose(advantages[mask], (future - values)[mask], atol=1e-5)
    advantages, _ = gae(rewards, values, mask, 1.0, 0.0)
    after = torch.cat([clean_values[:, 1:], torch.zeros(len(mask), 1)], 1)
    assert torch.allclose(advantages[mask], (rewards + after - values)[mask], atol=1e-6)


@given(seeds, st.sampled_from([NAN, 1e30, -7.0]))
def test_gae_reads_nothing_outside_the_response(seed: int, garbage: float) -> None:
    mask, rewards, values = random_case(seed, 2)
    clean = gae(rewards, values, mask)
    dirty = gae(torch.where(mask, rewards, garbage), torch.where(mask, values, garbage), mask)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


# --- rewards ----------------------------------------------------------------------------------------------


@given(seeds, st.floats(0, 2))
def test_rewards_of_a_row_sum_to_score_minus_kl(seed: int, kl_coef: float) -> None:
    mask, logprobs, ref = random_case(seed, 2)
    scores = torch.arange(len(mask)).double()
    rewards = compute_rewards(logprobs, ref, scores, mask, kl_coef)
    for b in range(len(mask)):
        log_ratio = sum((logprobs[b, t] - ref[b, t]).item() for t in range(mask.shape[1]) if mask[b, t])
        assert rewards[b].sum().item() == pytest.approx(scores[b].item() - kl_coef * log_ratio, abs=1e-5)
    # garbage in prompt and padding is harmless
    dirty = compute_rewards(
        torch.where(mask, logprobs, NAN), torch.where(mask, ref, -1e9), scores, mask, kl_coef
    )
    assert torch.equal(rewards, dirty)


def test_the_score_lands_on_the_last_response_token() -> None:
    mask = torch.tensor(
        [[False, True, True, False], [True, False, False, False], [False, False, False, True]]
    )
    zeros = torch.zeros(3, 4)
    rewards = compute_rewards(zeros, zeros, torch.tensor([5.0, 6.0, 7.0]), mask, 0.02)
    assert rewards.tolist() == [[0, 0, 5, 0], [6, 0, 0, 0], [0, 0, 0, 7]]


def test_rewards_by_hand_for_every_estimator() -> None:
    logprobs, ref, score = row(-1.0, -2.0), row(-1.5, -1.0), torch.tensor([3.0])
    k3 = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0]
    for estimator, kl in (("k1", [0.5, -1.0]), ("k2", [0.125, 0.5]), ("k3", k3)):
        rewards = compute_rewards(logprobs, ref, score, ones(1, 2), 0.1, estimator)
        assert rewards[0].tolist() == pytest.approx([-0.1 * kl[0], 3.0 - 0.1 * kl[1]], abs=1e-6)


def test_a_response_without_tokens_is_refused() -> None:
    with pytest.raises(AssertionError, match="score"):
        compute_rewards(row(0.0), row(0.0), torch.tensor([1.0]), ~ones(1, 1), 0.1)


def test_missing_eos_replaces_or_subtracts_and_spares_the_rest() -> None:
    scores, has_eos = torch.tensor([0.3, -4.0, 2.5]), torch.tensor([True, False, False])
    replaced = missing_eos(scores, has_eos, 1.0)
    assert torch.equal(replaced, torch.tensor([0.3, -1.0, -1.0]))
    subtracted = missing_eos(scores, has_eos, 1.0, "subtract")
    assert torch.equal(subtracted, torch.tensor([0.3, -5.0, 1.5]))


# --- policy loss ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "flat"),
    [(1.0, 1.5, -1.2, True), (1.0, 0.5, -0.5, False), (-1.0, 1.5, 1.5, False), (-1.0, 0.5, 0.8, True)],
)
def test_surrogate_golden(advantage: float, ratio: float, loss: float, flat: bool) -> None:
    logprobs = row(math.log(ratio)).requires_grad_()
    got, metrics = ppo_policy_loss(logprobs, row(0.0), row(advantage), ones(1, 1), clip_eps=0.2)
    assert got.item() == pytest.approx(loss, abs=1e-6)
    (grad,) = torch.autograd.grad(got, logprobs)
    assert grad.item() == pytest.approx(0.0 if flat else -advantage * ratio, abs=1e-6)
    assert metrics["clipfrac"].item() == 1
    assert metrics["ratio"].item() == metrics["ratio_max"].item() == pytest.approx(ratio, abs=1e-6)


@given(seeds)
def test_equal_policies_give_ratio_1_no_kl_and_the_reinforce_gradient(seed: int) -> None:
    mask, logprobs, advantages = random_case(seed, 2)
    live = logprobs.clone().requires_grad_()
    loss, metrics = ppo_policy_loss(live, logprobs, advantages, mask)
    assert metrics["ratio_max"].item() == 1
    assert metrics["ratio"].item() == mask.sum()
    assert metrics["approxkl"].item() == metrics["approxkl_k3"].item() == metrics["clipfrac"].item() == 0
    (grad,) = torch.autograd.grad(loss, live)
    reinforce = live.clone().detach().requires_grad_()
    (want,) = torch.autograd.grad(-(advantages * reinforce)[mask].sum(), reinforce)
    assert torch.allclose(grad, want, atol=1e-5)


@given(seeds)
def test_policy_metrics_equal_plain_python(seed: int) -> None:
    mask, logprobs, old, advantages = random_case(seed, 3)
    loss, metrics = ppo_policy_loss(logprobs, old, advantages, mask, clip_eps=0.3, entropy=-logprobs)
    cells = [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t]]
    x = [(logprobs[c] - old[c]).item() for c in cells]
    a = [advantages[c].item() for c in cells]
    rho = [math.exp(v) for v in x]
    want = {
        "policy_loss": -sum(min(r * v, min(max(r, 0.7), 1.3) * v) for r, v in zip(rho, a, strict=True)),
        "approxkl": sum(v * v / 2 for v in x),
        "approxkl_k3": sum(math.exp(v) - 1 - v for v in x),
        "clipfrac": sum(abs(r - 1) > 0.3 for r in rho),
        "ratio": sum(rho),
        "ratio_max": max(rho),
        "entropy": -sum(logprobs[c].item() for c in cells),
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(want, abs=1e-9)
    assert loss.item() == pytest.approx(want["policy_loss"], abs=1e-9)


@given(seeds, st.floats(0.1, 10), st.floats(-10, 10))
def test_whitening_forgets_scale_and_shift_of_advantages(seed: int, scale: float, shift: float) -> None:
    mask, logprobs, old, advantages = random_case(seed, 3)
    if mask.sum() < 2:
        return
    grads = []
    for raw in (advantages, scale * advantages + shift):
        live = logprobs.clone().requires_grad_()
        loss, _ = ppo_policy_loss(live, old, whiten(raw, mask), mask)
        grads.append(torch.autograd.grad(loss, live)[0])
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-5)


def test_constant_advantages_teach_nothing() -> None:
    live = torch.randn(2, 3).requires_grad_()
    loss, _ = ppo_policy_loss(live, live.detach(), whiten(torch.full((2, 3), 0.7), ones(2, 3)), ones(2, 3))
    (grad,) = torch.autograd.grad(loss, live)
    assert grad.abs().max().item() < 1e-5


def losses(values: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Both losses of a case and their gradients to log-probs and values."""
    live, critic = (values[name].clone().requires_grad_() for name in ("logprobs", "values"))
    policy, _ = ppo_policy_loss(live, values["old_logprobs"], values["advantages"], mask)
    value, _ = ppo_value_loss(critic, values["old_values"], values["returns"], mask, value_clip_eps=0.2)
    return policy + value, list(torch.autograd.grad(policy + value, [live, critic]))


NAMES = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns")


@given(seeds)
def test_micro_batches_add_up_and_padding_is_never_read(seed: int) -> None:
    mask, *tensors = random_case(seed, 6)
    case = dict(zip(NAMES, tensors, strict=True))
    total, grads = losses(case, mask)
    parts = [losses({k: v[s] for k, v in case.items()}, mask[s]) for s in (slice(0, 1), slice(1, 4))]
    assert sum(part for part, _ in parts).item() == pytest.approx(total.item(), abs=1e-5)
    for whole, first, second in zip(grads, parts[0][1], parts[1][1], strict=True):
        assert torch.allclose(whole, torch.cat([first, second]), atol=1e-5)
    for name in NAMES:
        dirty, dirty_grads = losses({**case, name: torch.where(mask, case[name], NAN)}, mask)
        assert torch.equal(dirty, total)
        assert all(torch.equal(a, b) for a, b in zip(grads, dirty_grads, strict=True))


def test_a_ratio_that_overflows_gives_no_nan() -> None:
    live = row(200.0, -200.0).requires_grad_()
    loss, metrics = ppo_policy_loss(live, row(0.0, 0.0), row(1.0, 1.0), ones(1, 2))
    (grad,) = torch.autograd.grad(loss, live)
    assert torch.isfinite(grad).all()
    assert math.isfinite(loss.item())
    assert math.isfinite(metrics["ratio_max"].item())


# --- value loss -------------------------------------------------------------------------------------------


@given(seeds, st.floats(0.01, 2))
def test_clipping_the_value_never_lowers_its_loss(seed: int, eps: float) -> None:
    mask, values, old, returns = random_case(seed, 3)
    plain, plain_metrics = ppo_value_loss(values, old, returns, mask)
    clipped, metrics = ppo_value_loss(values, old, returns, mask, value_clip_eps=eps)
    cells = [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t]]
    want = sum((values[c].item() - returns[c].item()) ** 2 for c in cells)
    assert plain.item() == pytest.approx(want / 2, abs=1e-9)
    assert (
        plain_metrics["value_error"].item() == metrics["value_error"].item() == pytest.approx(want, abs=1e-9)
    )
    assert plain_metrics["value_clipfrac"].item() == 0
    assert clipped >= plain
    near = old + (values - old).clamp(-eps, eps)
    inside, _inside_metrics = ppo_value_loss(near, old, returns, mask, value_clip_eps=eps * (1 + 1e-9))
    assert inside.item() == pytest.approx(ppo_value_loss(near, old, returns, mask)[0].item(), abs=1e-9)


def test_value_clip_by_hand() -> None:
    # V moved from 0 to 1, R = 1: the clipped value 0.2 is worse; V moved away from R: the plain one is
    values, old, returns = row(1.0, -1.0).requires_grad_(), row(0.0, 0.0), row(1.0, 1.0)
    loss, metrics = ppo_value_loss(values, old, returns, ones(1, 2), value_clip_eps=0.2)
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 2.0**2), abs=1e-6)
    assert metrics["value_clipfrac"].item() == 1
    (grad,) = torch.autograd.grad(loss, values)
    assert grad[0].tolist() == pytest.approx([0.0, -2.0], abs=1e-6)
