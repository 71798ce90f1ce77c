import pytest
import torch
from torch import Tensor, nn

from rlhfkit.objectives.language import lm_loss
from rlhfkit.objectives.logprobs import token_logprobs

V, EOS = 13, 2


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, 8), nn.Tanh())


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Sum of the loss with its gradients; targets given apart, so that labels alone can be perturbed."""
    head = model[0].weight
    logprobs, _ = token_logprobs(model(inputs), lambda h: h @ head.T, targets, mask)
    total, _ = lm_loss(logprobs, mask)
    return total, list(torch.autograd.grad(total, list(model.parameters())))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows: a prompt of 3 and of 1 tokens, then a completion with EOS, then padding."""
    ids = torch.tensor([[5, 6, 7, 8, 9, EOS, 0], [4, 3, 10, EOS, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0, 0]]).bool()
    return ids[:, :-1], ids[:, 1:], mask[:, 1:]


def test_prompt_and_padding_labels_count_nothing_and_eos_counts(model: nn.Module) -> None:
    inputs, targets, mask = batch()
    loss, grads = loss_of(model, inputs, targets, mask)
    other, other_grads = loss_of(model, inputs, torch.where(mask, targets, 11), mask)
    assert torch.equal(loss, other)
    assert all(torch.equal(a, b) for a, b in zip(grads, other_grads, strict=True))
    without_eos, _ = loss_of(model, inputs, targets, mask & (targets != EOS))
    assert without_eos < loss


def test_ragged_micro_batches_add_up_to_the_big_batch(model: nn.Module) -> None:
    inputs, targets, mask = batch()
    loss, grads = loss_of(model, inputs, targets, mask)
    parts = [loss_of(model, inputs[i : i + 1], targets[i : i + 1], mask[i : i + 1]) for i in range(2)]
    assert sum(part for part, _ in parts).item() == pytest.approx(loss.item(), abs=1e-5)
    for whole, one, two in zip(grads, parts[0][1], parts[1][1], strict=True):
        assert torch.allclose(whole, one + two, atol=1e-5)


def test_metrics_are_sums_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, torch.nan]])
    mask = torch.tensor([[True, True, False]])
    loss, metrics = lm_loss(logprobs, mask)
    assert loss.item() == 3
    assert (metrics["nll"].item(), metrics["tokens"].item()) == (3, 2)


@pytest.mark.parametrize("coef", [0.0, 0.5, 27.8])
def test_a_ptx_term_adds_coef_times_the_cross_entropy_gradient(model: nn.Module, coef: float) -> None:
    inputs, targets, mask = batch()
    _, ce_grads = loss_of(model, inputs, targets, mask)
    head = model[0].weight

    def total(coef: float) -> list[Tensor]:
        logprobs, _ = token_logprobs(model(inputs), lambda h: h @ head.T, targets, mask)
        objective = (logprobs.exp() * 0.3).sum()  # stands for any policy loss
        return list(
            torch.autograd.grad(objective + coef * lm_loss(logprobs, mask)[0], list(model.parameters()))
        )

    for mixed, plain, ce in zip(total(coef), total(0.0), ce_grads, strict=True):
        assert torch.allclose(mixed - plain, coef * ce, rtol=1e-4, atol=1e-5 * max(coef, 1))
