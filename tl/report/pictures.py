"""Small pictures of the images that a report shows, as the network sees them, within the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tl.data.images import BadImage, Decoded, Size
from tl.data.split import AnyImages, Source, read_shrunk
from tl.data.transforms import View, augmented_view, plain_view, seeded
from tl.errors import UserError
from tl.models.preprocessing import Preprocessing

SIDE = 112
"""pixels of a picture"""
QUALITY = 72
"""of JPEG: 3 to 5 kB a picture"""
EXAMPLES, EPOCHS = 4, 4
"""training images that augmentation is shown of, and epochs of each"""


@dataclass
class Pictures:
    """Pictures by image, each made once. Where one cannot be made there is None."""

    source: Source | None = None
    preprocessing: Preprocessing | None = None
    why_not: str = ""
    """why there is no ``source``, a sentence"""
    reads: bool = True
    """whether images are read that are not here yet"""
    _made: dict[tuple[int, str], str | None] = field(default_factory=dict)
    _augmented: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def validation(self, position: int, name: str) -> str | None:
        """A validation image as a data URI, if the image that was there is there still."""
        key = (position, name)
        if key not in self._made and self.reads and self.source and self.preprocessing:
            self._made[key] = self._read(self.source.val, position, name)
        return self._made.get(key)

    def _read(self, split: AnyImages, position: int, name: str) -> str | None:
        assert self.preprocessing is not None
        if not 0 <= position < len(split) or split.names[position] != name:
            return None
        view = plain_view(self.preprocessing)
        try:
            return data_uri(_seen(split, view, position))
        except (BadImage, OSError, UserError):
            return None

    def augmented(self, phase: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        """Some training images of a phase, and what training sees of them.

        Args:
            phase: of ``report/run.json``.

        Returns:
            For each image its ``name``, ``plain``, and ``views``, data URIs by epoch from 1.
        """
        key = f"{phase['name']} {phase['first_epoch']}"
        if key not in self._augmented and self.reads and self.source and self.preprocessing:
            self._augmented[key] = list(self._augment(phase, seed))
        return self._augmented.get(key, [])

    def _augment(self, phase: dict[str, Any], seed: int) -> Any:
        assert self.source is not None
        assert self.preprocessing is not None
        of_target = not len(self.source.train) and self.source.target is not None
        split: AnyImages = self.source.target.images if of_target else self.source.train  # type: ignore[union-attr]
        view = augmented_view(self.preprocessing, phase["augment"], phase["crop_scale"])
        epochs = -(-int(phase["steps_of_it"]) // max(1, int(phase["steps_per_epoch"])))
        rounds = [int(phase["first_epoch"]) + i for i in range(min(EPOCHS, epochs))]
        every = phase.get("views")
        for position in spread(len(split), EXAMPLES):
            try:
                plain = data_uri(_seen(split, plain_view(self.preprocessing), position))
                views = {}
                for number in rounds:
                    numbers = (seed, number % every if every else number, position)
                    views[number + 1] = data_uri(_seen(split, view, position, *numbers))
            except (BadImage, OSError):
                continue
            yield {"name": split.names[position], "plain": plain, "views": views}


def spread(count: int, most: int) -> list[int]:
    """At most so many positions below ``count``, evenly spread: so of several classes."""
    return sorted(set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()))


def _seen(split: AnyImages, view: View, position: int, *numbers: int) -> Image.Image:
    """What ``view`` makes of an image; ``numbers`` are those of `tl.data.streams.Images`."""

    def least(size: Size) -> Size:
        return seeded(view.least, size, *numbers)

    decoded: Decoded = read_shrunk(split.read, position, least)
    seen: Tensor = seeded(view, decoded, *numbers)
    pixels = seen.permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def data_uri(image: Image.Image) -> str:
    """A picture as text that an ``img`` may have for its source."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def named(names: Sequence[str], number: int) -> str:
    """The name of a class, or its number where there is none."""
    return names[number] if number < len(names) else f"class {number}"
