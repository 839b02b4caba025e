"""scikit-learn's handwritten digits: 1797 images of 8×8 that come with the package, no download."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tl.config import DataConfig
from tl.data.split import Source, Split, hold_out

FILE = "data/digits.csv.gz"


def digits(data: DataConfig, seed: int) -> Source:
    """The digits 0 to 9, ``data.val_fraction`` of each held out. Grey 0…16 becomes RGB 0…255.

    From the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
    UCI Machine Learning Repository, 1998.
    """
    grey, labels = _load()
    pixels = np.rint(grey * (255 / 16)).astype(np.uint8)
    everything = Split(
        names=[f"digits/{i:04d}" for i in range(len(pixels))],
        labels=labels,
        read=_ReadArray(pixels),
    )
    train, val = hold_out(everything, data.val_fraction, seed)
    return Source("digits", tuple(map(str, range(10))), train, val)


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Grey values (N, 8, 8) of 0 to 16, and labels (N,) int64.

    From scikit-learn's file, without scikit-learn: to import it took each process 1.7 s, to read
    the file takes 0.01 s.
    """
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin).with_name("datasets") / FILE if package and package.origin else None
    if file is None or not file.is_file():  # packed or laid out in another way
        from sklearn.datasets import load_digits

        found = load_digits()
        return found.images, found.target.astype(np.int64)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].copy()


@dataclass(frozen=True, eq=False)
class _ReadArray:
    pixels: np.ndarray  # (N, H, W) uint8

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")
