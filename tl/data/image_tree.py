"""The images in a folder and in those below it, and what was passed over on the way."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from tl.config import DataConfig
from tl.data import tree_index
from tl.data.image_files import ReadFiles
from tl.data.names import Names
from tl.data.split import Split, some
from tl.data.tree_index import TreeIndex
from tl.errors import UserError, printable

MOST_WAYS = 100
"""Ways to one folder. Twenty folders with two links each to the next have a million to the last."""

KINDS = ("images", "ignored", "misnamed")
"""what a walk finds"""


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
    index: TreeIndex = field(default_factory=TreeIndex)
    """what is known of it; what is asked for and is not in there is listed"""
    kept: dict[tuple[str, str], Names] = field(default_factory=dict)
    """what of that was in a file"""

    @classmethod
    def at(cls, root: Path, data: DataConfig, place: Path | None = None) -> Self:
        """The tree below ``root``; nothing is listed yet.

        Args:
            place: the folder with indexes of trees, of which this may be one.
        """
        endings = frozenset(f".{ending.lower().removeprefix('.')}" for ending in data.extensions)
        tree = cls(root, endings, tuple(data.background))
        if place is not None and (found := tree_index.find(place, root, endings)) is not None:
            tree.index.looked_into.update(found.looked_into)
            tree.index.lists.update(found.lists)
            tree.kept.update(found.lists)
        return tree

    def keep(self, place: Path | None) -> None:
        """Write what was found to the folder of indexes, if it is more than is there."""
        if place is not None and len(self.index.lists) > len(self.kept):
            tree_index.keep(place, self.root, self.endings, self.index)

    @property
    def listed_endings(self) -> str:
        return ", ".join(sorted(self.endings))

    def folders(self, below: str) -> list[str]:
        """Names of the folders in this folder, sorted."""
        if ("folders", below) not in self.index.lists:
            self._look_into(below)
            found = sorted(e.name for e in self._entries(below) if self._is_folder(below, e))
            self.index.lists["folders", below] = Names.of(found)
        return list(self.index.lists["folders", below])

    def images(self, below: str) -> list[str]:
        """Paths of the images at any depth below this folder, sorted.

        Raises:
            UserError: a folder cannot be listed, or links lead to it in too many ways.
        """
        images, ignored, misnamed = self._walk(below)
        self.ignored.extend(ignored)
        self.misnamed.extend(misnamed)
        return images

    def all_images(self, below: str) -> Names:
        """The same, from the index if they are in there."""
        lists = self.index.lists
        if ("images", below) not in lists:
            for kind, found in zip(KINDS, self._walk(below), strict=True):
                lists[kind, below] = Names.of(found)
        self.ignored.extend(lists["ignored", below])
        self.misnamed.extend(lists["misnamed", below])
        return lists["images", below]

    def _walk(self, below: str) -> tuple[list[str], list[str], list[str]]:
        """Images, files that are none, and folders that are called like one, each sorted."""
        found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for kind, path in self.walk(below):
            found[kind].append(path)
        images, ignored, misnamed = (found[kind] for kind in KINDS)
        return images, ignored, misnamed

    def walk(self, below: str) -> Iterator[tuple[str, str]]:
        """What there is at any depth below this folder: which of `KINDS` it is, and its path.

        In the order of the paths. In memory are the names in one folder and in those above it.

        Raises:
            UserError: a folder cannot be listed, or links lead to it in too many ways.
        """
        # A link to a folder that it lies in would be followed for ever, and from above the class
        # into the other classes: so know which folders lead down to each.
        top = tuple(self._look_into(str(parent)) for parent in Path(below).parents)
        ways: Counter[tuple[int, int]] = Counter()
        down = [(below, (*top, self._look_into(below)), iter(self._names(below)))]
        while down:
            path, above, names = down[-1]
            for name in names:
                where = join(path, name.removesuffix("/"))
                has_ending = _ending(where) in self.endings
                if not name.endswith("/"):
                    yield ("images" if has_ending else "ignored"), where
                    continue
                if has_ending:
                    yield "misnamed", where
                if (here := self._look_into(where)) in above:
                    continue
                ways[here] += 1
                if ways[here] > MOST_WAYS:
                    raise UserError(
                        f"links lead to {self.root / where} in more than {MOST_WAYS} ways."
                        " Remove those that repeat its images"
                    )
                down.append((where, (*above, here), iter(self._names(where))))
                break
            else:
                down.pop()

    def _names(self, below: str) -> list[str]:
        """Names in a folder, those of folders with / at their end, as which they sort.

        So what is below ``a`` comes behind ``a-b``, as their paths do.
        """
        return sorted(
            f"{entry.name}/" if self._is_folder(below, entry) else entry.name
            for entry in self._entries(below)
        )

    def split(self, part: str, folders: Sequence[str], classes: Sequence[str]) -> Split:
        """The images in these class folders of a part; labels are positions in ``classes``."""
        self.stray.extend(self._stray(part))
        parts = [self.all_images(join(part, name)) for name in folders]
        names = Names.joined(parts)
        position = {name: label for label, name in enumerate(classes)}
        labels = np.repeat(
            np.array([position[name] for name in folders], dtype=np.int64),
            np.array([len(images) for images in parts], dtype=np.int64),
        )
        return Split(
            names=names,
            labels=labels,
            read=ReadFiles(names, self.background, self.root),
            root=self.root,
        )

    def _stray(self, part: str) -> Names:
        if ("stray", part) not in self.index.lists:
            self._look_into(part)
            found = [
                join(part, entry.name)
                for entry in self._entries(part)
                if _ending(entry.name) in self.endings and not self._is_folder(part, entry)
            ]
            self.index.lists["stray", part] = Names.of(found)
        return self.index.lists["stray", part]

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

    def _look_into(self, below: str) -> tuple[int, int]:
        """Which folder this is, by device and inode; before it is listed, when it was changed."""
        try:
            stat = (self.root / below).stat()
        except OSError as error:
            raise self._cannot_list(below, error) from error
        signature = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        self.index.looked_into.setdefault(below, signature)
        return stat.st_dev, stat.st_ino

    def _is_folder(self, below: str, entry: os.DirEntry[str]) -> bool:
        try:
            if entry.is_dir():
                return True
            leads_nowhere = entry.is_symlink() and not entry.is_file()
        except OSError:  # a link that leads to itself, or to where one may not look
            leads_nowhere = True
        if leads_nowhere:
            self.index.looked_into.setdefault(join(below, entry.name), None)
        return False

    def _entries(self, below: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / below) as entries:
                yield from (entry for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            raise self._cannot_list(below, error) from error

    def _cannot_list(self, below: str, error: OSError) -> UserError:
        return UserError(
            f"cannot list {self.root / below}: {error.strerror}. Check its permissions"
        )


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
    """Of a path whose last part is not hidden; four times as fast as `os.path.splitext`."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") else ""


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"
