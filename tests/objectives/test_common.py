import math
import statistics
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhfkit.objectives.common import (
    explained_variance,
    masked_mean,
    masked_sum,
    whiten,
)

NAN = math.nan


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


masked_rows = st.lists(
    st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=2, max_size=40
).filter(lambda cells: sum(kept for _, kept in cells) >= 2)


def test_masked_sum_and_mean_ignore_nan_outside_the_mask() -> None:
    x = torch.tensor([[1.0, NAN, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    assert masked_sum(x, mask).item() == 6
    masked_mean(x, mask).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.5, 0, 0.5]]
    assert masked_mean(x, ~ones(1, 3)).item() == 0


def test_whiten_golden_with_biased_variance() -> None:
    x = torch.arange(12, 21)[None] / 10
    assert whiten(x, ones(1, 9), shift_mean=False)[0, 0].item() == pytest.approx(0.0508, abs=1e-4)
    assert whiten(x, ones(1, 9))[0, 0].item() == pytest.approx(0.0508 - 1.6, abs=1e-4)


@given(masked_rows, st.floats(-3, 3))
def test_whiten_has_mean_0_and_variance_1_over_the_mask(cells: list[tuple[float, bool]], pad: float) -> None:
    x, mask = row(*(v for v, _ in cells)), torch.tensor([[kept for _, kept in cells]])
    kept = [v for v, k in cells if k]
    if statistics.pstdev(kept) < 0.05:
        return
    white = whiten(x, mask)
    inside = white[mask].double().tolist()
    assert statistics.fmean(inside) == pytest.approx(0, abs=1e-4)
    assert statistics.pvariance(inside) == pytest.approx(1, abs=1e-4)
    assert white[~mask].abs().sum() == 0
    # with the mean kept, the order and the mean stay
    assert statistics.fmean(whiten(x, mask, False)[mask].double().tolist()) == pytest.approx(
        statistics.fmean(kept), abs=1e-3
    )
    # what stands outside the mask is not read
    assert torch.equal(white, whiten(torch.where(mask, x, NAN if pad > 0 else pad * 1e6), mask))


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6])
def test_whiten_of_a_constant_is_zero_not_nan(constant: float) -> None:
    assert whiten(torch.full((2, 3), constant), ones(2, 3)).abs().max().item() < 1e-5


def test_whiten_keeps_a_small_spread_on_a_large_offset() -> None:
    white = whiten(row(4096.0, 4096.5, 4097.0), ones(1, 3))
    assert white[0].tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)], abs=1e-4)


def run_ranks(work: list) -> list:
    """Run each of `work` in a thread, with a `reduce` that sums over the threads."""
    barrier = threading.Barrier(len(work))
    slots: list = [None] * len(work)
    results: list = [None] * len(work)

    def rank(i: int) -> None:
        def reduce(x: torch.Tensor) -> torch.Tensor:
            slots[i] = x
            barrier.wait()
            total = torch.stack(slots).sum(0)
            barrier.wait()
            return total

        results[i] = work[i](reduce)

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_statistics_of_two_processes_equal_those_of_one() -> None:
    torch.manual_seed(0)
    x, y, mask = torch.randn(4, 5), torch.randn(4, 5), torch.rand(4, 5) > 0.3
    parts = [slice(0, 1), slice(1, 4)]
    white = run_ranks([lambda r, p=p: whiten(x[p], mask[p], reduce=r) for p in parts])
    assert torch.allclose(torch.cat(white), whiten(x, mask), atol=1e-6)
    explained = run_ranks([lambda r, p=p: explained_variance(x[p], y[p], mask[p], reduce=r) for p in parts])
    assert explained[0] == explained[1] == pytest.approx(explained_variance(x, y, mask).item(), abs=1e-6)


def test_explained_variance_of_perfect_and_of_mean_values() -> None:
    returns = torch.tensor([[1.0, 2.0, 6.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask).item() == pytest.approx(1, abs=1e-5)
    assert explained_variance(torch.full((1, 4), 3.0), returns, mask).item() == pytest.approx(0, abs=1e-5)
    # by hand: error (4 + 1 + 9) / 3, variance (4 + 1 + 9) / 3 around 3
    assert explained_variance(row(3, 3, 3, 9.0), returns, mask).item() == pytest.approx(0, abs=1e-5)
    assert explained_variance(row(-3, 3, 3, 9.0), returns, mask).item() == pytest.approx(
        1 - (16 + 1 + 9) / 14, abs=1e-5
    )
    assert math.isnan(explained_variance(row(1, 2.0), row(3, 3.0), ones(1, 2)).item())
