"""The images that all of a comparison read: a folder of links without what does not load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

SPLITS = ("train", "val")


def links_to_what_loads(data: Path, folder: Path) -> dict[str, int]:
    """Fill ``folder`` with links to the images below ``data`` that all contenders can read.

    These are the files with an ending that torchvision's ImageFolder takes that can be decoded.

    Returns the number of images of ``train`` and ``val``, and how many were ``left_out``.

    Raises:
        FileNotFoundError: ``data`` has no train/ or no val/ with a folder for each class.
    """
    counts = {"train": 0, "val": 0, "left_out": 0}
    for split in SPLITS:
        for path in sorted((data / split).glob("*/*")):
            if path.suffix.lower() not in IMG_EXTENSIONS or not _loads(path):
                counts["left_out"] += 1
                continue
            link = folder / path.relative_to(data)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
            counts[split] += 1
        if not counts[split]:
            raise FileNotFoundError(f"{data / split} has no folders with images that load")
    return counts


def _loads(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def make_tiny(data: Path, train: int = 8, val: int = 4, size: int = 80) -> None:
    """Write JPEGs of two classes, so many of each class: reddish and greenish noise."""
    random = np.random.default_rng(0)
    for split, count in zip(SPLITS, (train, val), strict=True):
        for label, name in enumerate(("green", "red")):
            folder = data / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 160, (size, size + 8 * i, 3), dtype=np.uint8)
                pixels[:, :, 1 - label] += 90
                Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
