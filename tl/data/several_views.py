"""Several views of an image at once, for predictions that are the mean over them.

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012,
section 4.1, average the probabilities over crops and their mirror images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from tl.data.images import Decoded, Size
from tl.data.transforms import View, augmented_view, plain_view, seeded
from tl.models.preprocessing import Preprocessing

SCALE = (0.5, 1.0)
"""Least and largest part of an image's area that a random crop has. Training's own crops go down to
0.08, of which most show no more than a corner."""


@dataclass(frozen=True)
class Several:
    """The plain view, and below it in one picture the random ones: uint8 (channels, count · S, S).

    A random view is a function of its number and of the image's size: it is the same for an image
    whichever others are looked at. An image is decoded once.
    """

    plain: View
    random: View
    count: int

    def least(self, size: Size) -> Size:
        """What is enough for each of them."""
        wanted = [self.plain.least(size)]
        wanted += [seeded(self.random.least, size, number) for number in range(1, self.count)]
        return max(width for width, _ in wanted), max(height for _, height in wanted)

    def __call__(self, image: Image.Image | Decoded) -> Tensor:
        """All views of an RGB image."""
        seen = [self.plain(image)]
        seen += [seeded(self.random, image, number) for number in range(1, self.count)]
        return torch.cat([view.permute(1, 2, 0) for view in seen]).permute(2, 0, 1)


def several_views(preprocessing: Preprocessing, count: int) -> View:
    """The plain view alone, or with ``count`` - 1 random crops, half of them mirrored."""
    plain = plain_view(preprocessing)
    if count == 1:
        return plain
    return Several(plain, augmented_view(preprocessing, "standard", SCALE), count)


def views_in(images: Tensor) -> list[Tensor]:
    """The views of a batch (N, channels, count · S, S), each (N, channels, S, S)."""
    side = images.shape[-1]
    if images.shape[-2] == side:
        return [images]
    return [view.contiguous(memory_format=torch.channels_last) for view in images.split(side, -2)]
