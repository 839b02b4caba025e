"""Images by their paths, without labels: files, and folders that are searched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tl.config import DataConfig
from tl.data.folder import images_below
from tl.data.image_files import ReadFiles
from tl.errors import UserError, did_you_mean


@dataclass(frozen=True)
class ImagePaths:
    """Images to read, each once, and lines that the user should see once."""

    paths: Sequence[str]
    """as the user gave them, or the folder that was given and the path below it"""
    notes: tuple[str, ...] = ()
    background: tuple[int, ...] = tuple(DataConfig().background)
    """RGB colour behind transparent pixels"""
    decode: Literal["fast", "exact"] = DataConfig().decode
    """the data key of that name"""

    @property
    def read(self) -> ReadFiles:
        """Position to image in RGB; raises `BadImage`."""
        return ReadFiles(self.paths, self.background)


def find_images(paths: Sequence[str], data: DataConfig) -> ImagePaths:
    """The images that ``paths`` name, in their order.

    A folder is searched at any depth for the files that ``data.extensions`` and the rules of
    `tl.data.folder` let count, sorted; a file is taken whatever its ending. What is named twice,
    also as another spelling of the path, counts where it comes first.

    Raises:
        UserError: a path does not exist, or there is not one image.
    """
    notes: list[str] = []
    found = list(_once(_each(paths, data, notes)))
    if not found:
        endings = ", ".join(data.extensions)
        raise UserError(
            f"no images in {', '.join(paths)}. In a folder, files that end in {endings} count; "
            "a file that is named itself is read whatever its ending"
        )
    return ImagePaths(found, tuple(notes), tuple(data.background), data.decode)


def _each(paths: Iterable[str], data: DataConfig, notes: list[str]) -> Iterator[str]:
    for given in paths:
        path = Path(given)
        if path.is_dir():
            below, ignored = images_below(path, data)
            notes += [f"{given}: {note}" for note in ignored]
            if not below:
                notes.append(f"{given}: no images")
            yield from (os.path.join(given, name) for name in below)  # noqa: PTH118 - keeps "./"
        elif path.exists():
            yield given
        else:
            beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            near = did_you_mean(path.name, beside)
            raise UserError(f"{given} does not exist.{near} Give an image or a folder")


def _once(paths: Iterable[str]) -> Iterator[str]:
    seen = set()
    for path in paths:
        place = os.path.abspath(path)  # noqa: PTH100 - a million paths; Path would take twice as long
        if place not in seen:
            seen.add(place)
            yield path
