"""A part of an image at another size, also where the image was decoded at a reduced size.

JPEG is decoded to a half, a quarter or an eighth by leaving out the finest frequencies of each
block, which the filter of the resize that follows would leave out too, only less sharply. So the
two differ, the less the more pixels are left to the filter (`SPARE`).
"""

from __future__ import annotations

import math

from PIL import Image

from tl.data.images import Box, Decoded, Size

SPARE = 2.0
"""What is decoded has at least so many times the width and height that the resize makes of it.
Measured on photographs of 3000×2000 pixels resized to 256, in levels of 255: with 3.9, 0.14 in the
mean and 1 at the 99.9th percentile; with 1.95, 0.4 and 5; with 0.97, 1.4 and 21
(benchmarks/input.md).
"""


def least_size(size: Size, part: Box, target: Size) -> Size:
    """How small an image may be decoded of which a part is to be resized to ``target``.

    Args:
        size: of the whole image.
        part: of it, in its pixels.
        target: width and height.
    """
    width, height = size
    left, top, right, bottom = part
    share = SPARE * max(target[0] / (right - left), target[1] / (bottom - top))
    if share > 1 / 2:  # the first size below the whole one is half of it
        return size
    return math.ceil(width * share), math.ceil(height * share)


def resized_part(
    decoded: Decoded, part: tuple[int, int, int, int], target: Size, filter: Image.Resampling
) -> Image.Image:
    """A part of an image, in pixels of the whole, at the size ``target``.

    Of an image at its own size the part is cut out first, as torchvision does. Of one at a reduced
    size the part may begin between two pixels, and a filter at its edge sees what lies beyond.
    """
    image = decoded.image
    if decoded.is_whole:
        whole = part == (0, 0, *image.size)
        return (image if whole else image.crop(part)).resize(target, filter)
    width, height = decoded.size
    left, top, right, bottom = decoded.box
    across, down = (right - left) / width, (bottom - top) / height
    box = (
        left + part[0] * across,
        top + part[1] * down,
        min(left + part[2] * across, image.width),  # or it may be beyond by the last bit
        min(top + part[3] * down, image.height),
    )
    return image.resize(target, filter, box=box)
