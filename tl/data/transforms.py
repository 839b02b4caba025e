"""From a decoded image to the network's input: the plain view and the augmented one.

The plain view is that of the weights' own recipe (resize the shorter side, cut out the centre,
normalise). Augmentation draws from torch's generator, which is seeded for every single image: the
augmentation of an image is a function of (seed, epoch, id), whichever process or worker makes it.
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


def _to_unit(image: Tensor) -> Tensor:
    """uint8 0…255 to float32 0…1. Divided, as in torchvision's recipes: `v2.ToDtype` multiplies
    by 1/255, and its last bit differs."""
    return image.to(torch.float32) / 255


def _middle(image: Image.Image) -> Image.Image:
    """The image, or its middle if it is longer than `LONGEST` times its width."""
    shorter = min(image.size)
    margins = [max(0, side - LONGEST * shorter) // 2 for side in image.size]
    if not any(margins):
        return image
    left, top = margins
    return image.crop((left, top, image.width - left, image.height - top))


def _to_input(preprocessing: Preprocessing) -> list[Callable]:
    return [
        v2.PILToTensor(),
        _to_unit,
        v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
    ]


def plain_view(preprocessing: Preprocessing) -> Transform:
    """RGB image to float32 (3, S, S): what validation and prediction see. It is deterministic."""
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    return v2.Compose(
        [
            _middle,
            v2.Resize(preprocessing.resize_size, interpolation, antialias=preprocessing.antialias),
            v2.CenterCrop(preprocessing.crop_size),
            *_to_input(preprocessing),
        ]
    )


def augmented_view(
    preprocessing: Preprocessing, augment: str, crop_scale: Sequence[float] = (0.08, 1.0)
) -> Transform:
    """RGB image to float32 (3, S, S) for training; ``augment`` is the config key of that name."""
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
    return v2.Compose([*steps, *_to_input(preprocessing)])


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
