"""The images that all of a comparison read: a folder of links without what does not load."""

from __future__ import annotations

import functools
import multiprocessing
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops
from torchvision.datasets.folder import IMG_EXTENSIONS

SPLITS = ("train", "val")
MARGIN = 64


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


def links_to_few(data: Path, folder: Path, train_per_class: int, seed: int) -> None:
    """Fill ``folder``/train with links to so many images of each class, ``folder``/val with others.

    Args:
        data: a folder for each class, of images that load.
    """
    for label, classes in enumerate(sorted(path for path in data.iterdir() if path.is_dir())):
        paths = sorted(path for path in classes.iterdir() if path.suffix in IMG_EXTENSIONS)
        order = np.random.default_rng((seed, label)).permutation(len(paths)).tolist()
        for place, i in enumerate(order):
            name = "train" if place < train_per_class else "val"
            link = folder / name / classes.name / paths[i].name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(paths[i].resolve())


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


def make_photos(data: Path, train: int, val: int, links: int, size: tuple[int, int]) -> None:
    """Write JPEGs that weigh and decode as photographs do, in 10 classes, with all cores.

    Soft fields of colour, edges and noise: 500×375 at quality 90 are 60 to 110 kB. Each training
    image has ``links`` more names, so that an epoch is long and little is written.

    Args:
        train, val: how many files are written of each.
        size: (width, height).
    """
    tasks = [
        (data / split / f"class{i % 10}" / f"{i}.jpg", i % 10, seed, size, extra)
        for split, count, extra, first in (("train", train, links, 0), ("val", val, 0, train))
        for i, seed in zip(range(count), range(first, first + count), strict=True)
    ]
    for label in range(10):
        for split in SPLITS:
            (data / split / f"class{label}").mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        pool.starmap(_make_photo, tasks, chunksize=16)


def _make_photo(path: Path, label: int, seed: int, size: tuple[int, int], links: int) -> None:
    random = np.random.default_rng(seed)
    cells = np.zeros((48, 48, 3))
    for many, strength in ((3, 70), (12, 40), (48, 35)):
        field = random.uniform(-strength, strength, (many, many, 3))
        cells += field.repeat(48 // many, 0).repeat(48 // many, 1)
    cells[:, :, label % 3] += 20 * (1 + label // 3)
    soft = Image.fromarray(np.clip(cells + 110, 0, 255).astype(np.uint8))
    left, top = random.integers(0, MARGIN, 2).tolist()
    noise = _noise(size).crop((left, top, left + size[0], top + size[1]))
    photo = ImageChops.add(soft.resize(size, Image.Resampling.BICUBIC), noise, offset=-128)
    photo.save(path, quality=90)
    for i in range(links):
        os.link(path, path.with_name(f"{path.stem}-{i}.jpg"))


@functools.cache
def _noise(size: tuple[int, int]) -> Image.Image:
    """Around 128, larger than ``size`` by `MARGIN`; once in a process, as it takes the longest."""
    shape = (size[1] + MARGIN, size[0] + MARGIN, 1)
    grey = np.random.default_rng(0).standard_normal(shape, np.float32) * 10 + 128
    return Image.fromarray(grey.repeat(3, 2).astype(np.uint8))
