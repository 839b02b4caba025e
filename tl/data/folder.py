"""Images in folders: one folder for each class, below train/ and val/ or to be split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tl.config import DataConfig
from tl.data.image_files import ReadFiles
from tl.data.image_tree import ImageTree, by_ending, join
from tl.data.split import Source, Split, Unlabelled, hold_out, ordered_classes, some
from tl.errors import UserError, did_you_mean, unknown

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation")
TEST = ("test", "testing")


def folder(data: DataConfig, seed: int, index: Path | None = None) -> Source:
    """The images below ``data.root`` or ``data.source_root``, in one of two layouts.

    * ``root/train/CLASS/…`` and ``root/val/CLASS/…``. The names in `TRAIN` and `VAL` count, in
      either case; a class in val must be one in train. Without val, ``data.val_fraction`` of
      train is held out.
    * ``root/CLASS/…``, of which ``data.val_fraction`` is held out. Root is read like this if
      none of those folders holds folders itself, and there are others: a class may be called
      "train".

    Classes are the folders of the training part, sorted by name. Images are the files at any
    depth below, by ``data.extensions``; hidden files and folders are passed over, links are
    followed, but not into a folder that they lie in. What has the ending of an image and is
    neither file nor folder (a link to nowhere, a named pipe) is an image that cannot be decoded; a
    folder with such an ending is one like any other, and is named.

    Args:
        index: the folder with indexes of trees. If this one's holds, no folder is listed; else it
            is written, unless a folder was changed just now or there can be none.

    Raises:
        UserError: a folder is missing, empty or of neither layout; a class has no training
            image, is unknown, or is the only one.
    """
    if data.labelled_root is None:
        raise UserError("data.source folder needs data.root: the folder with the images")
    root = Path(data.labelled_root).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        key = "data.root" if data.source_root is None else "data.source_root"
        raise UserError(
            f"{key} {root} {what}. Give the folder with train/ and val/, as {key}=FOLDER"
        )
    tree = ImageTree.at(root, data, index)

    children = tree.folders("")
    train, val = part_of(root, children, TRAIN), part_of(root, children, VAL)
    if train and tree.folders(train):
        used, notes = {train, val}, []
        if unused := [f"{name}/" for name in children if name not in used]:
            notes.append(f"not used: {some(unused)}")
    elif val and tree.folders(val):
        raise UserError(
            f"{root} has {val}/ with class folders, but no train/ with any."
            " Name the folder of the training images train/"
        )
    elif train and val and all(name.lower() in TRAIN + VAL + TEST for name in children):
        there = [*tree.images(train), *tree.images(val)]
        raise UserError(
            f"{root} has {train}/ and {val}/, but no class folders in them"
            f"{': ' + some(there) if there else ''}. Put the images of each class in a folder of "
            f"its own, as {train}/CLASS/ and {val}/CLASS/"
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
    tree.keep(index)
    return Source(str(root), tuple(classes), train_split, val_split, (*notes, *tree.notes()))


def labelled(
    root: Path, classes: Sequence[str], data: DataConfig, index: Path | None = None
) -> tuple[Split, list[str]]:
    """The images in class folders, as positions in ``classes``, and notes for the user.

    The class folders are those of ``root/val`` if there are any in it, else those of ``root``.
    Not every class needs a folder.

    Args:
        index: see `folder`.

    Raises:
        UserError: the folder is missing, holds no class folder or no image, or a class folder is
            none of ``classes``.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder. Give one with a folder for each class, or with val/")
    tree = ImageTree.at(root, data, index)
    children = tree.folders("")
    val = part_of(root, children, VAL)
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
            f" Files that end in {tree.listed_endings} count (data.extensions)"
        )
    tree.keep(index)
    return split, tree.notes()


def images_in(tree: ImageTree, part: str) -> Unlabelled:
    """The images at any depth below a folder of a tree, sorted, whatever the folders mean."""
    names = tree.all_images(part)
    return Unlabelled(names, ReadFiles(names, tree.background, tree.root), tree.root)


def part_of(root: Path, children: Sequence[str], names: Sequence[str]) -> str | None:
    """The one folder of these names, in either case, if there is any."""
    found = [child for child in children if child.lower() in names]
    if len(found) > 1:
        raise UserError(
            f"{root} has {' and '.join(f'{name}/' for name in found)}, which mean the same."
            " Leave one of them"
        )
    return found[0] if found else None


def _classes(tree: ImageTree, part: str) -> list[str]:
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


def _check_every_class(tree: ImageTree, part: str, split: Split, classes: Sequence[str]) -> None:
    for name, count in zip(classes, np.bincount(split.labels, minlength=len(classes)), strict=True):
        if not count:
            below = join(part, name)
            there = [file for file in tree.ignored if file.startswith(f"{below}/")]
            raise UserError(
                f"class folder {tree.root / below} has no images."
                f" Files that end in {tree.listed_endings} count (data.extensions);"
                f" it holds {by_ending(there) if there else 'no files'}."
                " Add images, remove the folder, or leave the class out with data.classes"
            )
