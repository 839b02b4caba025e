"""Gradient reversal: what minimises one loss over features that are to maximise it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def reverse(x: Tensor, strength: float) -> Tensor:
    """``x`` (of any shape) as it is; what comes back to it is its gradient times ``-strength``.

    Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015. A
    discriminator behind it learns at its full rate, whatever the strength; the features before it
    take a step by which it would do worse.
    """
    return _Reverse.apply(x, strength)


def reversal_strength(
    progress: float, alpha: float = 10.0, low: float = 0.0, high: float = 1.0
) -> float:
    """``low + (high - low) (2 / (1 + exp(-alpha progress)) - 1)``, of Ganin et al., JMLR 2016.

    While the discriminator knows nothing yet, it has little to say about the features. By
    ``progress``, which is a function of the step, a resumed run goes on with the same strength.

    Args:
        progress: how much of the phase is done, 0 to 1.
        alpha: how fast it rises; at 10, the paper's, half of it is there after 11 % of the phase.
        low: its value at the start.
        high: what it comes close to.
    """
    return low + (high - low) * (2 / (1 + math.exp(-alpha * progress)) - 1)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * slope, None
