"""From a decoded image to the network's input: the plain view, the augmented one, `normalise`.

The plain view is that of the weights' own recipe (resize the shorter side, cut out the centre). A
view has 8 bits a colour: to make it the network's input, subtract the mean and divide by the
standard deviation, is left to `normalise`, for a whole batch and where the network is. So a quarter
of the bytes go from the loader's workers to the device. Augmentation draws from torch's generator,
which is seeded for every single image: the augmentation of an image is a function of (seed, epoch,
id), whichever process or worker makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from tl.data.images import Decoded, Size
from tl.data.resizing import least_size, resized_part
from tl.models.preprocessing import Preprocessing
from tl.randomness import seed_of

LONGEST = 100
"""Of an image that is more than this many times as long as wide, the middle is taken. To resize the
shorter side of one of 1×65,535 pixels, a JPEG of 17 kB, to 256 would take 12 gigabytes; and what
lies further out is cut off afterwards."""


class View(Protocol):
    """What is seen of an image: uint8 (channels, S, S), its colours last in memory.

    Both methods draw from torch's generator, and the same when it is seeded the same: so what is
    seen can be told from the size alone, before anything is decoded.
    """

    def least(self, size: Size) -> Size:
        """How small an image of this size may be decoded, and be seen nearly the same."""
        ...

    def __call__(self, image: Image.Image | Decoded) -> Tensor:
        """The view of an RGB image."""
        ...


@dataclass(frozen=True)
class _Plain:
    preprocessing: Preprocessing

    def least(self, size: Size) -> Size:
        part, target = _middle(size), self._resized(size)
        return size if _picks_pixels(self.preprocessing) else least_size(size, part, target)

    def __call__(self, image: Image.Image | Decoded) -> Tensor:
        decoded = image if isinstance(image, Decoded) else Decoded.whole(image)
        part, target = _middle(decoded.size), self._resized(decoded.size)
        resized = resized_part(decoded, part, target, _filter(self.preprocessing))
        side = self.preprocessing.crop_size
        return _tensor(v2.functional.center_crop(resized, [side, side]), self.preprocessing)

    def _resized(self, size: Size) -> Size:
        """The shorter side becomes what the recipe says; the longer one is rounded down."""
        left, top, right, bottom = _middle(size)
        width, height = right - left, bottom - top
        short = self.preprocessing.resize_size
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short


@dataclass(frozen=True)
class _Flipped:
    """The plain view of the image or of its mirror image."""

    plain: _Plain

    def least(self, size: Size) -> Size:
        return self.plain.least(size)

    def __call__(self, image: Image.Image | Decoded) -> Tensor:
        decoded = image if isinstance(image, Decoded) else Decoded.whole(image)
        return self.plain(decoded.mirrored() if _heads() else decoded)


@dataclass(frozen=True)
class _Cropped:
    """A random part of the image, mirrored or not, and what ``more`` makes of it."""

    preprocessing: Preprocessing
    crop: v2.RandomResizedCrop
    more: Callable[[Image.Image], Image.Image] | None = None

    def least(self, size: Size) -> Size:
        side = self.preprocessing.crop_size
        if _picks_pixels(self.preprocessing):
            return size
        if least_size(size, (0, 0, *size), (side, side)) == size:  # nor then for a part of it
            return size
        return least_size(size, self._part(size), (side, side))

    def __call__(self, image: Image.Image | Decoded) -> Tensor:
        decoded = image if isinstance(image, Decoded) else Decoded.whole(image)
        part, side = self._part(decoded.size), self.preprocessing.crop_size
        seen = resized_part(decoded, part, (side, side), _filter(self.preprocessing))
        if _heads():
            seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.more is not None:
            seen = self.more(seen)
        return _tensor(seen, self.preprocessing)

    def _part(self, size: Size) -> tuple[int, int, int, int]:
        width, height = size
        stand_in = torch.empty(3, height, width, device="meta")  # it asks for the size alone
        box = self.crop.make_params([stand_in])
        left, top = box["left"], box["top"]
        return left, top, left + box["width"], top + box["height"]


def _tensor(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """An RGB image as uint8 (channels, H, W).

    One channel is Pillow's L, (19595 R + 38470 G + 7471 B) / 65536, rounded: of a grey image that
    had become RGB, bit for bit what it was.
    """
    return v2.functional.pil_to_tensor(image.convert("L") if preprocessing.channels == 1 else image)


def _heads() -> bool:
    return torch.rand(1).item() < 0.5


def _filter(preprocessing: Preprocessing) -> Image.Resampling:
    name = preprocessing.interpolation
    return Image.Resampling["NEAREST" if name == "nearest-exact" else name.upper()]


def _picks_pixels(preprocessing: Preprocessing) -> bool:
    """Whether resizing picks single pixels; decoded at a reduced size they would be means."""
    return _filter(preprocessing) is Image.Resampling.NEAREST


def _middle(size: Size) -> tuple[int, int, int, int]:
    """The whole image, or its middle if it is longer than `LONGEST` times its width."""
    left, top = (max(0, side - LONGEST * min(size)) // 2 for side in size)
    return left, top, size[0] - left, size[1] - top


def plain_view(preprocessing: Preprocessing) -> View:
    """What validation and prediction see. It is deterministic."""
    return _Plain(preprocessing)


def augmented_view(
    preprocessing: Preprocessing, augment: str, crop_scale: Sequence[float] = (0.08, 1.0)
) -> View:
    """What training sees; ``augment`` is the config key of that name."""
    plain = _Plain(preprocessing)
    if augment == "none":
        return plain
    if augment == "flip":
        return _Flipped(plain)
    low, high = crop_scale
    crop = v2.RandomResizedCrop(preprocessing.crop_size, scale=(low, high))
    if augment == "trivial":
        return _Cropped(preprocessing, crop, v2.TrivialAugmentWide())
    assert augment == "standard"
    return _Cropped(preprocessing, crop)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Views as a network's input, bit for bit as torchvision's recipes compute it on a CPU.

    Args:
        images: (..., channels, H, W) uint8, on any device.

    Returns:
        (..., channels, H, W) float32 there, colours last in memory (channels_last).
    """
    colours_last = images.movedim(-3, -1)
    rows = colours_last.flatten(-2)  # (..., H, W · channels)
    width = colours_last.shape[-2]
    # A row of means for a row of pixels: over the three colours alone, in the order that they have
    # in memory, each of these three passes takes three times as long.
    mean, std = (
        torch.tensor(values, dtype=torch.float32).repeat(width).to(images.device, non_blocking=True)
        for values in (preprocessing.mean, preprocessing.std)
    )
    # Divided, as in the recipes: `v2.ToDtype` multiplies by 1/255, and its last bit differs.
    if images.device.type == "cpu" and rows.dim() > 2:  # image by image, they stay in the cache
        out = torch.empty_like(rows, dtype=torch.float32)
        for row, pixels in zip(out.flatten(0, -3), rows.flatten(0, -3), strict=True):
            row.copy_(pixels).div_(255).sub_(mean).div_(std)
    else:
        out = rows.to(torch.float32).div_(255).sub_(mean).div_(std)
    return out.unflatten(-1, (width, preprocessing.channels)).movedim(-1, -3)


Argument = TypeVar("Argument")
Result = TypeVar("Result")


def seeded(function: Callable[[Argument], Result], argument: Argument, *numbers: int) -> Result:
    """Apply ``function`` with torch's CPU generator seeded by ``numbers`` and nothing else.

    The generator is left as it was: with no loader workers it is the training process's own.
    """
    seed = seed_of("view", *numbers)
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        return function(argument)
    finally:
        generator.set_state(state)
