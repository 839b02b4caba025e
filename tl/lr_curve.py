"""The learning-rate range test as arithmetic: the rates, the smoothed loss, the end, the advice.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3; with a rate
that rises exponentially, as is usual today.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SMOOTHING = 0.9
"""share of the average so far in the next one: it looks back about ten steps"""
TOO_HIGH = 4.0
"""times the lowest smoothed loss: there the test ends"""
SETTLED = 10
"""steps after which the smoothed loss is that of more than a few batches"""
FRACTION = 0.1
RULE = "a tenth of the rate at which the smoothed loss is lowest"


def rate_at(step: int, steps: int, lr_min: float, lr_max: float) -> float:
    """The rate of a step, from 0: ``lr_min`` at the first, ``lr_max`` at the last."""
    return lr_min * (lr_max / lr_min) ** (step / (steps - 1))


def smoothed(losses: Sequence[float]) -> list[float]:
    """The exponential moving average, without the pull of the zero that it starts from.

    With a_0 = 0 and a_i = 0.9 a_(i-1) + 0.1 loss_i, the i-th value is a_i / (1 - 0.9^i), i from 1:
    a weighted mean of the losses up to the i-th.
    """
    average, result = 0.0, []
    for i, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        result.append(average / (1 - SMOOTHING**i))
    return result


def is_over(losses: Sequence[float]) -> bool:
    """Whether the last smoothed loss is more than 4 times the lowest so far."""
    curve = smoothed(losses)
    return curve[-1] > TOO_HIGH * min(curve)


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """A tenth of the rate of `lowest_step`, with two digits; None if there is none."""
    lowest = lowest_step(losses)
    return None if lowest is None else with_two_digits(FRACTION * rates[lowest])


def lowest_step(losses: Sequence[float]) -> int | None:
    """The step, from 0, of the lowest smoothed loss, the first ten left aside.

    None if it never fell from there on, or there are no more than those.
    """
    curve = smoothed(losses)
    lowest = min(range(SETTLED, len(curve)), key=curve.__getitem__, default=SETTLED)
    return lowest if lowest > SETTLED else None


def with_two_digits(rate: float) -> float:
    """``rate`` rounded down to two significant digits, so that it stays below what it was."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return float(f"{math.floor(rate / unit + 1e-9) * unit:.1e}")
