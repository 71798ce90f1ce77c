"""The optimizer against torch's own, its checkpoints, the schedules in closed form, the weight average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rlhfkit.engine.optim import AdamW, WeightAverage, clip_gradients, learning_rate
from rlhfkit.errors import RlhfkitError


def small_module(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def take_steps(module: nn.Module, optimizer: AdamW, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step)).to(
            next(module.parameters()).dtype
        )
        module(x).square().mean().backward()
        optimizer.collect()
        optimizer.step(1e-2)


def test_same_as_a_textbook_adamw() -> None:
    module = small_module()
    optimizer = AdamW(module, weight_decay=0.1, eps=1e-8)
    weight, bias = module[0].weight, module[0].bias
    expected = {"w": weight.detach().double().clone(), "b": bias.detach().double().clone()}
    moments = {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in expected.items()}
    for t in range(1, 6):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(t))
        module(x).square().mean().backward()
        for key, parameter, decay in (("w", weight, 0.1), ("b", bias, 0.0)):
            g = parameter.grad.double()
            m, v = moments[key]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.95).add_(0.05 * g * g)
            update = (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
            expected[key] = expected[key] * (1 - 1e-2 * decay) - 1e-2 * update
        optimizer.step(1e-2)
    torch.testing.assert_close(weight.double(), expected["w"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(bias.double(), expected["b"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_state_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    straight = small_module(torch.float32)
    optimizer = AdamW(straight, weight_decay=0.1, dtype=dtype)
    take_steps(straight, optimizer, range(10))

    first = small_module(torch.float32)
    before = AdamW(first, weight_decay=0.1, dtype=dtype)
    take_steps(first, before, range(4))
    saved = {k: v.clone() for k, v in before.tensors().items()}
    second = small_module(torch.float32)
    after = AdamW(second, weight_decay=0.1, dtype=dtype)
    after.load_tensors(saved)
    take_steps(second, after, range(4, 10))
    for name, value in optimizer.tensors().items():
        assert torch.equal(value, after.tensors()[name]), name


def test_low_precision_weights_have_float32_masters_that_keep_small_updates() -> None:
    module = small_module(torch.float32)
    exact = module[0].weight.detach().clone()
    optimizer = AdamW(module, dtype=torch.bfloat16)
    assert torch.equal(optimizer.masters["0.weight"], exact)
    assert torch.equal(module[0].weight, exact.bfloat16())
    before = optimizer.masters["0.weight"].detach().clone()
    for _ in range(50):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.collect()
        optimizer.step(1e-5)
    moved = (before - optimizer.masters["0.weight"]).mean()
    assert float(moved) == pytest.approx(5e-4, rel=0.05)
    assert torch.equal(module[0].weight, optimizer.masters["0.weight"].bfloat16())


def test_gradients_of_several_micro_batches_add_up_in_float32() -> None:
    module = small_module(torch.float32)
    optimizer = AdamW(module, dtype=torch.bfloat16)
    for value in (1.0, 2.0**-9, 2.0**-9):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.collect()
    # bfloat16 has 8 bits: 1 + 2^-9 would have stayed 1.
    assert all(float(g.flatten()[0]) == 1 + 2.0**-8 for g in optimizer.gradients())


def test_clipping_scales_to_the_norm_and_refuses_what_is_not_finite() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert clip_gradients(gradients, 0.0) == pytest.approx(5.0)
    assert clip_gradients(gradients, 1.0) == pytest.approx(5.0)
    assert gradients[0][0] == pytest.approx(0.6, abs=1e-5)
    assert gradients[1][0, 0] == pytest.approx(0.8, abs=1e-5)
    with pytest.raises(RlhfkitError, match="not finite"):
        clip_gradients([torch.tensor([float("nan")])], 1.0)


def test_schedules() -> None:
    total = 100
    cosine = [learning_rate(s, total, peak=2.0, schedule="cosine", warmup=0) for s in range(total)]
    assert cosine[0] == 2.0
    assert cosine[-1] == pytest.approx(0.2, abs=1e-9)
    assert cosine == sorted(cosine, reverse=True)
    middle = learning_rate(50, 101, peak=2.0, schedule="cosine", warmup=0)
    assert middle == pytest.approx(1.1, abs=1e-9)  # half-way between the peak and its tenth
    # InstructGPT's PPO: iteration 0 at a tenth of the peak, iteration 10 and later at the peak
    ppo = [learning_rate(s, total, peak=1.0, schedule="constant", warmup=10) for s in range(20)]
    assert ppo[0] == pytest.approx(0.1, abs=1e-9)
    assert ppo[5] == pytest.approx(0.55, abs=1e-9)
    assert ppo[10:] == [1.0] * 10
    linear = [learning_rate(s, 4, peak=1.0, schedule="linear", warmup=0) for s in range(4)]
    assert linear == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert learning_rate(0, 1, peak=1.0, schedule="cosine", warmup=0) == 1.0
    fraction = [learning_rate(s, 100, peak=1.0, schedule="constant", warmup=0.1) for s in range(11)]
    assert fraction == pytest.approx(ppo[:11])


def test_weight_average_has_its_closed_form() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = AdamW(module)
    average = WeightAverage(optimizer, 0.9)
    for n in range(1, 6):
        with torch.no_grad():
            module.weight.fill_(float(n))
        average.update()
    # sum over n of 0.1 * 0.9^(5 - n) * n
    expected = sum(0.1 * 0.9 ** (5 - n) * n for n in range(1, 6))
    assert float(average.weights["weight"]) == pytest.approx(expected, abs=1e-6)
    live = WeightAverage(optimizer, 0.0)
    with torch.no_grad():
        module.weight.fill_(math.pi)
    live.update()
    assert torch.equal(live.weights["weight"], module.weight)
