"""A fingerprint changes with the images, and with nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl.config import DataConfig
from tl.data.features import fingerprint as module
from tl.data.features.fingerprint import fingerprint
from tl.data.folder import folder
from tl.data.images import BadImage
from tl.data.split import Split


def alone(split: Split) -> str:
    return fingerprint(split, 0, 1, lambda digests: digests)


def images(root: Path, count: int = 6) -> Path:
    for i in range(count):
        path = root / "train" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(path)
    (root / "val").symlink_to("train")
    return root


def of_folder(root: Path) -> str:
    return alone(folder(DataConfig(root=str(root)), 0).train)


def arrays(pixels: np.ndarray) -> Split:
    def read(i: int) -> Image.Image:
        if pixels[i].sum() == 0:
            raise BadImage(f"{i}", "black")
        return Image.fromarray(pixels[i])

    names = [f"{i}" for i in range(len(pixels))]
    return Split(names, np.zeros(len(pixels), np.int64), read)


def test_it_is_the_same_again_and_for_a_copy_with_the_same_times(tmp_path: Path) -> None:
    before = of_folder(images(tmp_path / "a"))
    assert of_folder(tmp_path / "a") == before
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)  # keeps times
    assert of_folder(tmp_path / "b") == before


def test_another_size_time_name_or_number_of_files_changes_it(tmp_path: Path) -> None:
    root = images(tmp_path)
    seen = {of_folder(root)}
    file = root / "train" / "class0" / "0.png"
    times = file.stat()
    file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.add(of_folder(root))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    seen.add(of_folder(root))
    file.rename(file.with_name("00.png"))
    seen.add(of_folder(root))
    (root / "train" / "class0" / "00.png").unlink()
    seen.add(of_folder(root))
    assert len(seen) == 5


def test_files_that_are_decoded_in_another_way_change_it(tmp_path: Path) -> None:
    split = folder(DataConfig(root=str(images(tmp_path))), 0).train

    def darker(i: int) -> Image.Image:
        return split.read(i).point(lambda value: value // 2)

    assert alone(split) != alone(Split(split.names, split.labels, darker, split.root))


def test_images_that_are_no_files_are_read_every_one() -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (50, 3, 3, 3), dtype=np.uint8)
    seen = {alone(arrays(pixels))}
    for i in range(50):
        other = pixels.copy()
        other[i, 2, 2, 2] ^= 1
        seen.add(alone(arrays(other)))
    other = pixels.copy()
    other[7] = 0  # cannot be decoded
    seen.add(alone(arrays(other)))
    assert len(seen) == 52


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_it_does_not_depend_on_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: int
) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    split = folder(DataConfig(root=str(images(tmp_path, 22))), 0).train
    shares: list[list[tuple[int, str]]] = []
    for part in range(parts):
        fingerprint(split, part, parts, lambda mine: shares.append(mine) or mine)  # type: ignore[func-returns-value]
    together = [digest for share in shares for digest in share]
    assert fingerprint(split, 0, parts, lambda mine: together) == alone(split)
