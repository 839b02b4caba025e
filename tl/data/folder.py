"""Images in folders: one folder for each class, below train/ and val/ or to be split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tl.config import DataConfig
from tl.data.images import read_rgb
from tl.data.split import Source, Split, hold_out, ordered_classes, some
from tl.errors import UserError, did_you_mean, unknown

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation")


def folder(data: DataConfig, seed: int) -> Source:
    """The images below ``data.root``, in one of two layouts.

    * ``root/train/CLASS/…`` and ``root/val/CLASS/…``. The names in `TRAIN` and `VAL` count, in
      either case; a class in val must be one in train. Without val, ``data.val_fraction`` of
      train is held out.
    * ``root/CLASS/…``, of which ``data.val_fraction`` is held out. Root is read like this if
      none of those folders holds folders itself: a class may be called "train".

    Classes are the folders of the training part, sorted by name. Images are the files at any
    depth below, by ``data.extensions``; hidden files and folders are passed over, links are
    followed, but not into a folder that they lie in.

    Raises:
        UserError: a folder is missing, empty or of neither layout; a class has no training
            image, is unknown, or is the only one.
    """
    if data.root is None:
        raise UserError("data.source folder needs data.root: the folder with the images")
    root = Path(data.root).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"data.root {root} {what}. Give the folder with train/ and val/")
    tree = _tree(root, data)

    children = tree.folders("")
    train, val = _part(root, children, TRAIN), _part(root, children, VAL)
    if train and tree.folders(train):
        used, notes = {train, val}, []
        if unused := [f"{name}/" for name in children if name not in used]:
            notes.append(f"not used: {some(unused)}")
    elif val and tree.folders(val):
        raise UserError(
            f"{root} has {val}/ with class folders, but no train/ with any."
            " Name the folder of the training images train/"
        )
    else:
        train, val, notes = "", None, []

    found = _classes(tree, train)
    classes = ordered_classes(data.classes, found)
    train_split = tree.split(train, classes, classes)
    _check_every_class(tree, train, train_split, classes)
    if val is None:
        train_split, val_split = hold_out(train_split, data.val_fraction, seed)
        if train:
            notes.append(f"no val/: held out {len(val_split)} images of {train}/")
    else:
        in_val = tree.folders(val)
        for name in in_val:
            if name not in found:
                raise UserError(
                    f"{root / val} has a class {name!r} that {root / train} lacks."
                    f"{did_you_mean(name, found)} Rename the folder or add training images"
                )
        val_split = tree.split(val, [name for name in in_val if name in classes], classes)
    return Source(
        str(root), tuple(classes), train_split, val_split, (*notes, *_ignored_notes(tree))
    )


def labelled(root: Path, classes: Sequence[str], data: DataConfig) -> tuple[Split, list[str]]:
    """The images in class folders, as positions in ``classes``, and notes for the user.

    The class folders are those of ``root/val`` if there are any in it, else those of ``root``.
    Not every class needs a folder.

    Raises:
        UserError: the folder is missing, holds no class folder or no image, or a class folder is
            none of ``classes``.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder. Give one with a folder for each class, or with val/")
    tree = _tree(root, data)
    children = tree.folders("")
    val = _part(root, children, VAL)
    part = val if val and tree.folders(val) else ""
    found = tree.folders(part)
    if not found:
        raise UserError(f"{root} has no folders. Put the images of each class in one of its own")
    for name in found:
        if name not in classes:
            raise unknown("class folder", name, classes, where=str(root / part))
    split = tree.split(part, found, classes)
    if not len(split):
        raise UserError(
            f"no images in the class folders of {root / part}."
            f" Files that end in {_list(tree.endings)} count (data.extensions)"
        )
    return split, _ignored_notes(tree)


def images_below(root: Path, data: DataConfig) -> tuple[list[str], list[str]]:
    """Paths below ``root`` of all images at any depth, sorted, and notes for the user."""
    tree = _tree(root, data)
    return tree.images(""), _ignored_notes(tree)


@dataclass(frozen=True)
class _Tree:
    """The folder of a data set, and what was passed over on the way through it.

    Paths are strings below root with ``/`` between their parts; ``""`` is root.
    """

    root: Path
    endings: frozenset[str]
    ignored: list[str]  # files of other endings in class folders
    stray: list[str]  # images beside the class folders
    background: tuple[int, ...]

    def folders(self, below: str) -> list[str]:
        """Names of the folders in this folder, sorted."""
        return sorted(entry.name for entry in self._entries(below) if entry.is_dir())

    def images(self, below: str) -> list[str]:
        """Paths of the images at any depth below this folder, sorted."""
        found: list[str] = []
        # A link to a folder that it lies in would be followed for ever, and from above the class
        # into the other classes: so know which folders lead down to each.
        top = tuple(self._identity(str(parent)) for parent in Path(below).parents)
        todo = [(below, top)]
        while todo:
            path, above = todo.pop()
            if (here := self._identity(path)) in above:
                continue
            for entry in self._entries(path):
                name = _join(path, entry.name)
                if entry.is_dir():
                    todo.append((name, (*above, here)))
                elif entry.is_file() or entry.is_symlink():  # a broken link is a bad image
                    (found if _ending(name) in self.endings else self.ignored).append(name)
        return sorted(found)

    def split(self, part: str, folders: Sequence[str], classes: Sequence[str]) -> Split:
        """The images in these class folders of a part; labels are positions in ``classes``."""
        self.stray.extend(
            _join(part, entry.name)
            for entry in self._entries(part)
            if _ending(entry.name) in self.endings and entry.is_file()
        )
        label = {name: position for position, name in enumerate(classes)}
        names: list[str] = []
        labels: list[np.ndarray] = []
        for name in folders:
            images = self.images(_join(part, name))
            names += images
            labels.append(np.full(len(images), label[name], dtype=np.int64))
        return Split(
            names=names,
            labels=np.concatenate([np.zeros(0, dtype=np.int64), *labels]),
            read=_ReadFiles(self.root, names, self.background),
            root=self.root,
        )

    def _identity(self, below: str) -> tuple[int, int]:
        stat = (self.root / below).stat()
        return stat.st_dev, stat.st_ino

    def _entries(self, below: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / below) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(
                f"cannot list {self.root / below}: {error.strerror}. Check its permissions"
            ) from error


def _tree(root: Path, data: DataConfig) -> _Tree:
    endings = frozenset(f".{ending.lower().removeprefix('.')}" for ending in data.extensions)
    return _Tree(root, endings, [], [], tuple(data.background))


@dataclass(frozen=True, eq=False)
class _ReadFiles:
    root: Path
    names: Sequence[str]
    background: tuple[int, ...]

    def __call__(self, index: int) -> Image.Image:
        red, green, blue = self.background
        return read_rgb(self.root / self.names[index], (red, green, blue))


def _part(root: Path, children: Sequence[str], names: Sequence[str]) -> str | None:
    """The one folder of these names, in either case, if there is any."""
    found = [child for child in children if child.lower() in names]
    if len(found) > 1:
        raise UserError(
            f"{root} has {' and '.join(f'{name}/' for name in found)}, which mean the same."
            " Leave one of them"
        )
    return found[0] if found else None


def _classes(tree: _Tree, part: str) -> list[str]:
    """The class folders of the training part: at least two."""
    found, place = tree.folders(part), tree.root / part
    if not found:
        raise UserError(f"{place} has no folders. Put the images of each class in one of its own")
    if len(found) == 1:
        raise UserError(
            f"{place} has only one class folder, {found[0]!r}; a classifier needs at least two."
            f" If that is the data set itself, give data.root={place / found[0]}"
        )
    return found


def _check_every_class(tree: _Tree, part: str, split: Split, classes: Sequence[str]) -> None:
    for name, count in zip(classes, np.bincount(split.labels, minlength=len(classes)), strict=True):
        if not count:
            below = _join(part, name)
            there = [file for file in tree.ignored if file.startswith(f"{below}/")]
            raise UserError(
                f"class folder {tree.root / below} has no images."
                f" Files that end in {_list(tree.endings)} count (data.extensions);"
                f" it holds {_by_ending(there) if there else 'no files'}."
                " Add images, remove the folder, or leave the class out with data.classes"
            )


def _ignored_notes(tree: _Tree) -> list[str]:
    notes = []
    if tree.ignored:
        notes.append(
            f"ignored {_files(len(tree.ignored))} whose ending is none of"
            f" {_list(tree.endings)}: {_by_ending(tree.ignored)}"
        )
    if tree.stray:
        notes.append(
            f"ignored {_files(len(tree.stray))} in no class folder: {some(sorted(tree.stray))}"
        )
    return notes


def _by_ending(files: Sequence[str]) -> str:
    """``2 .gif (a.gif, b.gif), 1 .txt (c.txt)``: the most frequent ending first."""
    groups: dict[str, list[str]] = {}
    for name in sorted(files):
        groups.setdefault(_ending(name) or "without an ending", []).append(name)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return ", ".join(f"{len(names)} {ending} ({some(names)})" for ending, names in ordered)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - five times as fast as Path.suffix


def _join(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def _list(endings: frozenset[str]) -> str:
    return ", ".join(sorted(endings))
