"""The root-mean-square norm against its definition and torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rlhfkit.models.norms import rms_norm


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 0.1), (x, weight))


def test_by_hand() -> None:
    # the mean square is 12.5
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x, g = (torch.randn(5, 11, 64, generator=generator).mul(3).to(dtype) for _ in range(2))
    weight = torch.randn(64, generator=generator).to(dtype)
    found = []
    for exact in (True, False):
        inputs = [t.double() if exact else t.clone() for t in (x, weight)]
        a, b = (t.requires_grad_() for t in inputs)
        out = F.rms_norm(a, (64,), b, 1e-5) if exact else rms_norm(a, b, 1e-5)
        out.backward(g.to(out.dtype))
        found.append([out, a.grad, b.grad])
    for want, got in zip(*found, strict=True):
        assert got.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(
            got.double(), want, rtol=tolerance, atol=tolerance * want.abs().max().item()
        )


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x = torch.randn(257, 384).bfloat16()
    weight = torch.randn(384).bfloat16()
    whole = rms_norm(x, weight, 1e-5)
    assert all(torch.equal(rms_norm(x[i : i + 1], weight, 1e-5)[0], whole[i]) for i in (0, 1, 100, 256))
