"""Images by their paths, without labels: files, folders, patterns, lists and standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tl.config import DataConfig
from tl.data import name_file
from tl.data.image_files import ReadFiles
from tl.data.image_tree import ImageTree
from tl.data.name_file import NameFile
from tl.data.path_lists import check_column, paths_in, paths_in_csv
from tl.errors import UserError, did_you_mean, printable

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Inputs:
    """What a user named to look at."""

    paths: Sequence[str]
    """files, folders, patterns as shells have them, and ``-`` for paths on standard input"""
    csv: str | None = None
    """a file with paths in it, which come last"""
    column: str = "path"
    """of that file"""
    null: bool = False
    """paths on standard input end with NUL bytes, not with lines"""

    def check(self) -> None:
        """Look at what takes no time.

        Raises:
            UserError: a path does not exist, or the CSV file has no such column.
        """
        if list(self.paths).count(STANDARD_INPUT) > 1:
            raise UserError("standard input, -, is named twice; it can be read once")
        for given in self.paths:
            path = Path(given)
            if given != STANDARD_INPUT and not path.exists() and not glob.has_magic(given):
                beside = [entry.name for entry in path.parent.iterdir()] if _lists(path) else []
                near = did_you_mean(path.name, beside)
                raise UserError(f"{given} does not exist.{near} Give an image or a folder")
        if self.csv is not None:
            check_column(self.csv, self.column)


@dataclass(frozen=True)
class ImagePaths:
    """Images to read, each once, and lines that the user should see once."""

    paths: Sequence[str]
    """as the user gave them, or the folder that was given and the path below it"""
    sha256: str
    """of all paths in their order"""
    notes: tuple[str, ...] = ()
    background: tuple[int, ...] = tuple(DataConfig().background)
    """RGB colour behind transparent pixels"""
    decode: Literal["fast", "exact"] = DataConfig().decode
    """the data key of that name"""

    @property
    def read(self) -> ReadFiles:
        """Position to image in RGB; raises `BadImage`."""
        return ReadFiles(self.paths, self.background)


def list_images(inputs: Inputs, data: DataConfig, place: Path) -> ImagePaths:
    """The images that ``inputs`` names, in its order, written to the folder ``place``.

    A folder is searched at any depth for the files that ``data.extensions`` and the rules of
    `tl.data.folder` let count, sorted; a file is taken whatever its ending. A pattern that no file
    is called like stands for all that match it, sorted. What is named twice, also as another
    spelling of the path, counts where it comes first.

    In memory are at most the names in one folder, the matches of one pattern, and 24 bytes for each
    image.

    Raises:
        UserError: nothing matches a pattern, a folder or list cannot be read, or there is not one
            image.
    """
    notes: list[str] = []
    digest = name_file.write(place, _each(inputs, data, notes))
    names = NameFile(place)
    one_folder = len(inputs.paths) == 1 and inputs.csv is None and Path(inputs.paths[0]).is_dir()
    if not one_folder:
        again = name_file.repeated(names, os.path.abspath)
        if len(again):
            left = np.ones(len(names), bool)
            left[again] = False
            digest = name_file.write(place, (name for i, name in enumerate(names) if left[i]))
            names = NameFile(place)
    if not names:
        endings = ", ".join(data.extensions)
        given = [*inputs.paths, *([inputs.csv] if inputs.csv else [])]
        raise UserError(
            f"no images in {', '.join(given)}. In a folder, files that end in {endings} count; "
            "a file that is named itself is read whatever its ending"
            + "".join(f". {note}" for note in notes)
        )
    return ImagePaths(names, digest, tuple(notes), tuple(data.background), data.decode)


def open_images(place: Path, data: DataConfig, sha256: str) -> ImagePaths:
    """What another process has listed in a folder."""
    return ImagePaths(NameFile(place), sha256, (), tuple(data.background), data.decode)


def _each(inputs: Inputs, data: DataConfig, notes: list[str]) -> Iterator[str]:
    for given in inputs.paths:
        if given == STANDARD_INPUT:
            yield from paths_in(sys.stdin.buffer, "standard input", inputs.null)
        elif Path(given).exists():
            yield from _one(given, data, notes)
        else:
            found = sorted(glob.iglob(given, recursive=True))  # noqa: PTH207 - keeps "./"
            if not found:
                raise UserError(f"nothing matches {given}. ** stands for folders at any depth")
            for path in found:
                yield from _one(path, data, notes)
    if inputs.csv is not None:
        yield from paths_in_csv(inputs.csv, inputs.column)


def _one(given: str, data: DataConfig, notes: list[str]) -> Iterator[str]:
    """The image, or those in the folder, of this path."""
    if not Path(given).is_dir():
        yield given
        return
    tree = ImageTree.at(Path(given), data)
    images, endings = 0, Counter[str]()
    for kind, name in tree.walk(""):
        if kind == "images":
            images += 1
            yield os.path.join(given, name)  # noqa: PTH118 - keeps "./"
        elif kind == "ignored":  # counted: there may be as many of them as images
            endings[os.path.splitext(name)[1].lower() or "without an ending"] += 1  # noqa: PTH122
        elif len(tree.misnamed) < MOST_MISNAMED:
            tree.misnamed.append(name)
    notes += [f"{given}: {note}" for note in tree.notes()]
    if endings:
        passed = ", ".join(f"{n:,} {printable(ending)}" for ending, n in endings.most_common(10))
        count = f"{endings.total():,} file{'s' if endings.total() > 1 else ''}"
        notes.append(
            f"{given}: ignored {count} whose ending is none of {tree.listed_endings}: {passed}"
        )
    if not images:
        notes.append(f"{given}: no images")


MOST_MISNAMED = 1000
"""folders called like images that are counted in a note"""


def _lists(path: Path) -> bool:
    return path.parent.is_dir() and os.access(path.parent, os.R_OK)
