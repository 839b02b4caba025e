"""The images in a folder and in those below it, and what was passed over on the way."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from tl.config import DataConfig
from tl.data.image_files import ReadFiles
from tl.data.split import Split, some
from tl.errors import UserError, printable

MOST_WAYS = 100
"""Ways to one folder. Twenty folders with two links each to the next have a million to the last."""


@dataclass(frozen=True)
class ImageTree:
    """The folder of a data set, and what was passed over on the way through it.

    Paths are strings below root with ``/`` between their parts; ``""`` is root. Hidden files and
    folders are passed over, links are followed, but not into a folder that they lie in.

    What has the ending of an image and is neither file nor folder (a link to nowhere, a named
    pipe) is an image all the same, which cannot be decoded.
    """

    root: Path
    endings: frozenset[str]
    background: tuple[int, ...]
    ignored: list[str] = field(default_factory=list)
    """files of other endings in class folders"""
    stray: list[str] = field(default_factory=list)
    """images beside the class folders"""
    misnamed: list[str] = field(default_factory=list)
    """folders called like an image"""

    @classmethod
    def at(cls, root: Path, data: DataConfig) -> Self:
        """The tree below ``root``; nothing is read yet."""
        endings = frozenset(f".{ending.lower().removeprefix('.')}" for ending in data.extensions)
        return cls(root, endings, tuple(data.background))

    @property
    def listed_endings(self) -> str:
        return ", ".join(sorted(self.endings))

    def folders(self, below: str) -> list[str]:
        """Names of the folders in this folder, sorted."""
        return sorted(entry.name for entry in self._entries(below) if _is_folder(entry))

    def images(self, below: str) -> list[str]:
        """Paths of the images at any depth below this folder, sorted.

        Raises:
            UserError: a folder cannot be listed, or links lead to it in too many ways.
        """
        found: list[str] = []
        # A link to a folder that it lies in would be followed for ever, and from above the class
        # into the other classes: so know which folders lead down to each.
        top = tuple(self._identity(str(parent)) for parent in Path(below).parents)
        todo = [(below, top)]
        ways: Counter[tuple[int, int]] = Counter()
        while todo:
            path, above = todo.pop()
            if (here := self._identity(path)) in above:
                continue
            ways[here] += 1
            if ways[here] > MOST_WAYS:
                raise UserError(
                    f"links lead to {self.root / path} in more than {MOST_WAYS} ways."
                    " Remove those that repeat its images"
                )
            for entry in self._entries(path):
                name = join(path, entry.name)
                if _is_folder(entry):
                    todo.append((name, (*above, here)))
                    if _ending(name) in self.endings:
                        self.misnamed.append(name)
                else:
                    (found if _ending(name) in self.endings else self.ignored).append(name)
        return sorted(found)

    def split(self, part: str, folders: Sequence[str], classes: Sequence[str]) -> Split:
        """The images in these class folders of a part; labels are positions in ``classes``."""
        self.stray.extend(
            join(part, entry.name)
            for entry in self._entries(part)
            if _ending(entry.name) in self.endings and not _is_folder(entry)
        )
        label = {name: position for position, name in enumerate(classes)}
        names: list[str] = []
        labels: list[np.ndarray] = []
        for name in folders:
            images = self.images(join(part, name))
            names += images
            labels.append(np.full(len(images), label[name], dtype=np.int64))
        return Split(
            names=names,
            labels=np.concatenate([np.zeros(0, dtype=np.int64), *labels]),
            read=ReadFiles(names, self.background, self.root),
            root=self.root,
        )

    def notes(self) -> list[str]:
        """Lines on what was passed over, and on what may not be what it is called."""
        notes = []
        if self.ignored:
            notes.append(
                f"ignored {_files(len(self.ignored))} whose ending is none of"
                f" {self.listed_endings}: {by_ending(self.ignored)}"
            )
        if self.stray:
            notes.append(
                f"ignored {_files(len(self.stray))} in no class folder: {some(sorted(self.stray))}"
            )
        if self.misnamed:
            what = "folders are" if len(self.misnamed) > 1 else "folder is"
            notes.append(
                f"{len(self.misnamed)} {what} called like an image; what is inside counts:"
                f" {some(sorted(self.misnamed))}"
            )
        return notes

    def _identity(self, below: str) -> tuple[int, int]:
        try:
            stat = (self.root / below).stat()
        except OSError as error:
            raise self._cannot_list(below, error) from error
        return stat.st_dev, stat.st_ino

    def _entries(self, below: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / below) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise self._cannot_list(below, error) from error

    def _cannot_list(self, below: str, error: OSError) -> UserError:
        return UserError(
            f"cannot list {self.root / below}: {error.strerror}. Check its permissions"
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to where one may not look
        return False


def by_ending(files: Sequence[str]) -> str:
    """``2 .gif (a.gif, b.gif), 1 .txt (c.txt)``: the most frequent ending first."""
    groups: dict[str, list[str]] = {}
    for name in sorted(files):
        groups.setdefault(_ending(name) or "without an ending", []).append(name)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return ", ".join(
        f"{len(names)} {printable(ending)} ({some(names)})" for ending, names in ordered
    )


def join(part: str, name: str) -> str:
    """The path of ``name`` in the folder ``part`` of a tree."""
    return f"{part}/{name}" if part else name


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - five times as fast as Path.suffix


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"
