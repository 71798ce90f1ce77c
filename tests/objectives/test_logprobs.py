import math

import pytest
import torch
from torch import Tensor, nn

from rlhfkit.objectives.logprobs import token_logprobs

B, T, D, V = 3, 7, 5, 11


class Head(nn.Module):
    """A linear head with a soft cap, as Gemma has; remembers how many rows it was given."""

    def __init__(self, cap: float | None = None) -> None:
        super().__init__()
        self.linear, self.cap, self.calls = nn.Linear(D, V), cap, []

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls.append(len(hidden))
        logits = self.linear(hidden)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    mask = torch.rand(B, T) > 0.4
    return torch.randn(B, T, D, requires_grad=True), torch.randint(V, (B, T)), mask


def by_hand(logits: list[float], target: int, temperature: float) -> tuple[float, float]:
    """(log-probability, entropy) with plain floats."""
    scaled = [x / temperature for x in logits]
    total = math.fsum(math.exp(x) for x in scaled)
    probs = [math.exp(x) / total for x in scaled]
    return math.log(probs[target]), -math.fsum(p * math.log(p) for p in probs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_equals_softmax_written_out(case: tuple, temperature: float, cap: float | None, chunk: int) -> None:
    hidden, targets, mask = case
    head = Head(cap)
    logprobs, entropy = token_logprobs(
        hidden, head, targets, mask, temperature=temperature, chunk=chunk, with_entropy=True
    )
    assert logprobs.dtype == torch.float32
    assert entropy is not None
    assert not entropy.requires_grad
    logits = head(hidden).tolist()
    for b in range(B):
        for t in range(T):
            want = by_hand(logits[b][t], int(targets[b, t]), temperature) if mask[b, t] else (0.0, 0.0)
            assert (logprobs[b, t].item(), entropy[b, t].item()) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_gradients_equal_those_of_the_full_log_softmax(case: tuple, chunk: int) -> None:
    hidden, targets, mask = case
    head = Head(cap=3.0)
    weights = torch.randn(B, T)
    logprobs, _ = token_logprobs(hidden, head, targets, mask, temperature=0.8, chunk=chunk)
    got = torch.autograd.grad((weights * logprobs).sum(), [hidden, *head.parameters()])

    wide = hidden.double().detach().requires_grad_()
    head.double()
    full = (head(wide) / 0.8).softmax(-1).log().gather(-1, targets[..., None])[..., 0]
    want = torch.autograd.grad((weights * full)[mask].sum(), [wide, *head.parameters()])
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5)


def test_the_head_sees_masked_positions_only_and_a_chunk_at_a_time(case: tuple) -> None:
    hidden, targets, mask = case
    head = Head()
    with torch.no_grad():
        token_logprobs(hidden, head, targets, mask, chunk=4)
    assert sum(head.calls) == mask.sum()
    assert max(head.calls) <= 4


def test_no_logits_are_kept_for_backward_beyond_a_chunk(case: tuple) -> None:
    hidden, targets, mask = case
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logprobs, _ = token_logprobs(hidden, Head(), targets, mask, chunk=2)
    assert not [x for x in kept if x.ndim == 2 and x.shape[-1] == V and not isinstance(x, nn.Parameter)]
    logprobs.sum().backward()  # the hooks above must not have broken the recomputation
    assert hidden.grad is not None


def test_garbage_outside_the_mask_changes_neither_values_nor_gradients(case: tuple) -> None:
    hidden, targets, mask = case
    head = Head()
    clean, _ = token_logprobs(hidden, head, targets, mask)
    dirty_hidden = torch.where(mask[..., None], hidden, torch.nan).detach().requires_grad_()
    dirty, _ = token_logprobs(dirty_hidden, head, torch.where(mask, targets, -100), mask)
    assert torch.equal(clean, dirty)
    want = torch.autograd.grad(clean.sum(), [hidden, head.linear.weight])
    got = torch.autograd.grad(dirty.sum(), [dirty_hidden, head.linear.weight])
    assert torch.equal(want[0], got[0])
    assert torch.equal(want[1], got[1])


def test_an_empty_mask_gives_zeros_and_zero_gradients(case: tuple) -> None:
    hidden, targets, mask = case
    head = Head()
    logprobs, entropy = token_logprobs(hidden, head, targets, torch.zeros_like(mask), with_entropy=True)
    logprobs.sum().backward()
    assert logprobs.abs().sum() == 0
    assert entropy is not None
    assert entropy.shape == (B, T)
    assert head.linear.weight.grad is not None
    assert head.linear.weight.grad.abs().sum() == 0


def test_a_uniform_model_has_log_v_nats(case: tuple) -> None:
    hidden, targets, mask = case
    head = Head()
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    logprobs, entropy = token_logprobs(hidden, head, targets, mask, with_entropy=True)
    assert entropy is not None
    assert logprobs[mask].tolist() == pytest.approx([-math.log(V)] * int(mask.sum()), abs=1e-4)
    assert entropy[mask].tolist() == pytest.approx([math.log(V)] * int(mask.sum()), abs=1e-4)


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    torch.manual_seed(1)
    logits = (4 * torch.randn(1, 2, 64)).bfloat16()
    logprobs, _entropy = token_logprobs(
        logits, lambda x: x, torch.tensor([[3, 5]]), torch.ones(1, 2, dtype=torch.bool), with_entropy=True
    )
    want = logits.double().log_softmax(-1)[0, [0, 1], [3, 5]]
    assert torch.allclose(logprobs[0].double(), want, atol=1e-5)


def test_entropy_allows_impossible_tokens() -> None:
    logits = torch.tensor([[[0.0, -math.inf, 0.0]]])
    _, entropy = token_logprobs(
        logits,
        lambda x: x,
        torch.zeros(1, 1, dtype=torch.long),
        torch.ones(1, 1, dtype=torch.bool),
        with_entropy=True,
    )
    assert entropy is not None
    assert entropy.item() == pytest.approx(math.log(2))
