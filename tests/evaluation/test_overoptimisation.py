"""Fits of Gao's forms on data made from them."""

import math

import numpy as np
import pytest

from rlhfkit.evaluation.overoptimisation import fit_gao


@pytest.mark.parametrize(("form", "bend"), [("best-of-n", lambda d: d), ("rl", math.log)])
def test_recovers_its_own_form(form, bend):
    d = [0.0, 0.2, 0.5, 1.0, 1.7, 2.4]
    r = [0.5, *(0.5 + x * (1.4 - 0.3 * bend(x)) for x in d[1:])]
    fit = fit_gao(d, r, form)
    assert (fit.start, fit.alpha, fit.beta, fit.r_squared) == pytest.approx((0.5, 1.4, 0.3, 1.0))
    assert fit(0) == fit.start
    assert fit(1.7) == pytest.approx(r[4])


def test_peaks_are_where_the_curve_is_highest():
    for form, top in (("best-of-n", 20.0), ("rl", 200.0)):
        grid = np.linspace(0.01, top, 20_000)
        bend = grid if form == "best-of-n" else np.log(grid)
        fit = fit_gao(grid, grid * (2.0 - 0.7 * bend), form)
        assert fit.peak == pytest.approx(grid[np.argmax([fit(d) for d in grid])], rel=0.01)


def test_no_peak_without_a_fall():
    assert fit_gao([1, 2, 3, 4], [1, 4, 9, 16], "best-of-n").peak is None
    assert fit_gao([1, 2, 3, 4], [1, 4, 9, 16], "rl").peak is None


def test_too_little_data():
    assert fit_gao([0.0, 1.0, 2.0], [0, 1, 2], "rl") is None
    assert fit_gao([1.0, 1.0, 2.0, 2.0], [0, 1, 2, 3], "rl") is None
    assert fit_gao([1.0, math.nan, 2.0, 3.0, 4.0], [1, 1, math.nan, 2, 3], "rl") is None
