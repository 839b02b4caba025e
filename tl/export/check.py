"""Whether what was exported, loaded afresh from the disk, computes what the run's model does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tl.data.transforms import normalise
from tl.export.plain import Staged
from tl.models.saved import SavedModel

Reader = Callable[[Tensor], Tensor]
"""From pixels (N, channels, S, S) uint8, as validation sees an image, to logits (N, C) float32."""

TOLERANCE = 1e-4
"""Of logits, as a share of the largest one (or of 1, if that is less). Another program sums in
another order and merges layers, which in float32 moves the last digits, the more the deeper the
network: 4e-7 of the largest logit in a trained SqueezeNet, 3e-5 in a ResNet-50 of random weights. A
wrong epsilon of a normalisation, another GELU or a channel in the wrong place moves more."""

SPARE = 10
"""Where it differs by more, so many times what float32 itself is off is still rounding."""

_FIRST = (1, 2, 7)
"""sizes of the first batches: one is easily taken for no dimension at all, or for any"""


@dataclass(frozen=True)
class Comparison:
    """How far apart two programs' outputs are for the same pixels."""

    images: int
    largest_logit: float
    """of the original, in absolute value"""
    logits: float
    """largest absolute difference"""
    probabilities: float
    """largest absolute difference"""
    same_class: int
    """images for which both have the same most probable class"""
    rounding: float = 0.0
    """largest difference of the original's logits in float32 and in float64, where that was
    measured"""

    @property
    def allowed(self) -> float:
        """The largest difference of logits that is taken for rounding."""
        return max(TOLERANCE * max(1.0, self.largest_logit), SPARE * self.rounding)

    @property
    def holds(self) -> bool:
        """Whether it is no more than rounding. NaN is more."""
        return self.logits <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.images:,} images: logits differ by {self.logits:.2g} at most (the largest is "
            f"{self.largest_logit:.3g}, allowed are {self.allowed:.2g}), probabilities by "
            f"{self.probabilities:.2g}; the same class for {self.same_class:,} of {self.images:,}"
        )


def compare(original: Tensor, other: Tensor) -> Comparison:
    """Logits (N, C) of the original and of another program."""
    assert original.shape == other.shape, (original.shape, other.shape)
    a, b = original.double(), other.double()
    return Comparison(
        images=len(a),
        largest_logit=a.abs().max().item(),
        logits=_largest(a - b),
        probabilities=_largest(a.softmax(1) - b.softmax(1)),
        same_class=int((a.argmax(1) == b.argmax(1)).sum()),
    )


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()  # NaN, if one is


@torch.inference_mode()
def over(reader: Reader, pixels: Tensor, batch_size: int) -> Tensor:
    """Logits (N, C) of all ``pixels``, the first in batches of 1, 2 and 7.

    With less than 10 images the first are taken again, so that there are batches of these sizes.
    """
    count = len(pixels)
    enough = pixels[torch.arange(max(count, sum(_FIRST))) % count]
    found = [reader(enough[part]) for part in _parts(len(enough), batch_size)]
    return torch.cat(found)[:count]


def _parts(count: int, batch_size: int) -> Iterator[slice]:
    start = 0
    for size in _FIRST:
        yield slice(start, start + size)
        start += size
    for begin in range(start, count, batch_size):
        yield slice(begin, min(begin + batch_size, count))


def rounding(model: SavedModel, pixels: Tensor, ours: Tensor, batch_size: int) -> float:
    """The largest difference between logits of the original and those that float64 gives."""
    precise = Staged(copy.deepcopy(model.network)).double().eval()

    def reader(pixels: Tensor) -> Tensor:
        return precise(normalise(pixels, model.preprocessing).double())

    return compare(over(reader, pixels, batch_size), ours).logits


def original(model: SavedModel) -> Reader:
    """The run's own pipeline, in eval mode and float32, stage for stage."""
    staged = Staged(model.network).float().eval()
    return lambda pixels: staged(normalise(pixels, model.preprocessing))
