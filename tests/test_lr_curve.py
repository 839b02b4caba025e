"""The range test's arithmetic: rates, smoothing, the end, the suggestion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.lr_curve import is_over, lowest_step, rate_at, smoothed, suggestion, with_two_digits

losses = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


def test_rates_rise_by_a_constant_factor_from_the_lowest_to_the_highest() -> None:
    rates = np.array([rate_at(i, 50, 1e-5, 2.0) for i in range(50)])
    assert rates[0] == 1e-5
    assert rates[-1] == pytest.approx(2.0, rel=1e-12)
    np.testing.assert_allclose(rates[1:] / rates[:-1], (2e5) ** (1 / 49), rtol=1e-12)


@given(losses)
def test_the_smoothed_loss_is_a_weighted_mean_of_the_losses_so_far(values: list[float]) -> None:
    """The sum of 0.9^age times the losses, over the sum of the weights, by a plain loop."""
    for i, got in enumerate(smoothed(values)):
        weights = [0.9 ** (i - j) for j in range(i + 1)]
        expected = math.fsum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_constant_loss_is_its_own_smoothed_one_and_never_ends_it() -> None:
    assert smoothed([2.0] * 30) == pytest.approx([2.0] * 30, rel=1e-12)
    assert not is_over([2.0] * 30)
    assert suggestion([1.0], [2.0]) is None
    assert suggestion([], []) is None


def test_it_ends_once_the_smoothed_loss_is_over_4_times_its_lowest() -> None:
    flat = [1.0] * 200  # the smoothed one is then 1 + 0.1 (loss - 1)
    assert not is_over([*flat, 30.9])
    assert is_over([*flat, 31.1])


def test_a_loss_that_only_rises_gives_no_suggestion() -> None:
    rates, rising = [0.1 * 1.2**i for i in range(30)], [1.0 + i for i in range(30)]
    assert suggestion(rates, rising) is None
    assert lowest_step(rising) is None
    assert suggestion(rates[:11], rising[:0:-1][:11]) is None  # too few to say


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_lowest_smoothed_loss() -> None:
    rates = [0.01 * 1.2**i for i in range(40)]
    values = [0.1, *(4.0 - 0.1 * i for i in range(29)), *[9.0] * 10]  # the first one by luck
    assert lowest_step(values) == 29
    assert suggestion(rates, values) == with_two_digits(rates[29] / 10)


@pytest.mark.parametrize(
    ("rate", "rounded"), [(0.01669, 0.016), (1.0, 1.0), (0.1, 0.1), (9.99e-7, 9.9e-7), (123, 120)]
)
def test_two_digits_are_rounded_down(rate: float, rounded: float) -> None:
    assert with_two_digits(rate) == rounded


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("highest", [1e-3, 1.0, 50.0])
def test_on_a_quadratic_the_suggestion_is_stable_and_not_idle(highest: float, seed: int) -> None:
    """Gradient descent with noise on 1/2 sum h_i x_i^2: stable below 2 / max h, in closed form.

    Useful rates are less than that by as much as a step's noise asks; a hundredth of it is idle.
    """
    rng = np.random.default_rng(seed)
    curvatures = highest * np.geomspace(0.01, 1, 5)
    x, values = 1 / np.sqrt(curvatures), []
    rates = [rate_at(i, 100, 1e-6 / highest, 1e3 / highest) for i in range(100)]
    for rate in rates:
        values.append(float((curvatures * x**2).sum() / 2))
        if is_over(values):
            break
        x -= rate * (curvatures * x + 0.1 * np.sqrt(curvatures) * rng.normal(size=5))
    assert len(values) < 100  # it diverged, and that was seen
    found = suggestion(rates, values)
    assert found is not None
    assert 0.01 * 2 / highest < found < 2 / highest
