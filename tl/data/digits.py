"""scikit-learn's handwritten digits: 1797 images of 8×8 that come with the package, no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tl.config import DataConfig
from tl.data.split import Source, Split, hold_out


def digits(data: DataConfig, seed: int) -> Source:
    """The digits 0 to 9, ``data.val_fraction`` of each held out. Grey 0…16 becomes RGB 0…255.

    From the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
    UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits  # takes a second to import; few runs need it

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    everything = Split(
        names=[f"digits/{i:04d}" for i in range(len(pixels))],
        labels=found.target.astype(np.int64),
        read=_ReadArray(pixels),
    )
    train, val = hold_out(everything, data.val_fraction, seed)
    return Source("digits", tuple(map(str, found.target_names)), train, val)


@dataclass(frozen=True, eq=False)
class _ReadArray:
    pixels: np.ndarray  # (N, H, W) uint8

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")
