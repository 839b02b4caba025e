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

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from tl.models.preprocessing import Preprocessing
from tl.randomness import seed_of

Transform = Callable[[Image.Image], Tensor]

LONGEST = 100
"""Of an image that is more than this many times as long as wide, the middle is taken. To resize the
shorter side of one of 1×65,535 pixels, a JPEG of 17 kB, to 256 would take 12 gigabytes; and what
lies further out is cut off afterwards."""


def _middle(image: Image.Image) -> Image.Image:
    """The image, or its middle if it is longer than `LONGEST` times its width."""
    shorter = min(image.size)
    margins = [max(0, side - LONGEST * shorter) // 2 for side in image.size]
    if not any(margins):
        return image
    left, top = margins
    return image.crop((left, top, image.width - left, image.height - top))


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Views as a network's input, bit for bit as torchvision's recipes compute it on a CPU.

    Args:
        images: (..., 3, H, W) uint8, on any device.

    Returns:
        (..., 3, H, W) float32 there, colours last in memory (channels_last).
    """
    colours_last = images.movedim(-3, -1)
    rows = colours_last.flatten(-2)  # (..., H, W · 3)
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
    return out.unflatten(-1, (width, 3)).movedim(-1, -3)


def plain_view(preprocessing: Preprocessing) -> Transform:
    """RGB image to uint8 (3, S, S): what validation and prediction see. It is deterministic."""
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    return v2.Compose(
        [
            _middle,
            v2.Resize(preprocessing.resize_size, interpolation, antialias=preprocessing.antialias),
            v2.CenterCrop(preprocessing.crop_size),
            v2.PILToTensor(),
        ]
    )


def augmented_view(
    preprocessing: Preprocessing, augment: str, crop_scale: Sequence[float] = (0.08, 1.0)
) -> Transform:
    """RGB image to uint8 (3, S, S) for training; ``augment`` is the config key of that name."""
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    if augment == "none":
        return plain_view(preprocessing)
    if augment == "flip":
        return v2.Compose([v2.RandomHorizontalFlip(), plain_view(preprocessing)])
    low, high = crop_scale
    steps: list[Callable] = [
        v2.RandomResizedCrop(
            preprocessing.crop_size,
            scale=(low, high),
            interpolation=interpolation,
            antialias=preprocessing.antialias,
        ),
        v2.RandomHorizontalFlip(),
    ]
    if augment == "trivial":
        steps.append(v2.TrivialAugmentWide())
    else:
        assert augment == "standard"
    return v2.Compose([*steps, v2.PILToTensor()])


def seeded(transform: Transform, image: Image.Image, *numbers: int) -> Tensor:
    """Apply ``transform`` with torch's CPU generator seeded by ``numbers`` and nothing else.

    The generator is left as it was: with no loader workers it is the training process's own.
    """
    seed = seed_of("view", *numbers)
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        return transform(image)
    finally:
        generator.set_state(state)
