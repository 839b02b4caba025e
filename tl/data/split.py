"""What a data source is: images to train on and to validate on, and seeded choices among them.

Every choice orders images by a hash of the seed and the image's own name. So it is the same on
every process and machine, whatever order the files are listed in; adding or removing images moves
no other one between training and validation; and the 10 images of a class that a seed keeps are
among the 20 that it keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from tl.data.images import Decoded, Least
from tl.data.names import hashes, taken
from tl.errors import UserError, printable, unknown


@dataclass(frozen=True, eq=False)
class Split:
    """N labelled images that are not read yet."""

    names: Sequence[str]
    """what to call each image in messages and outputs, unique; for files the path below root"""
    labels: np.ndarray
    """(N,) int64: positions in the source's classes"""
    read: Callable[[int], Image.Image]
    """position -> the image in RGB; raises `BadImage`; may be pickled, and called after a fork.
    One that can decode at a reduced size has a method ``shrunk(index, least)`` besides, which
    returns a `Decoded`"""
    root: Path | None = None
    """the folder that the names are paths below, if the images are files"""
    domain: str = ""
    """what tells them from images of another domain that have the same names"""

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.names),) or self.labels.dtype != np.int64:
            raise ValueError(
                f"labels must be ({len(self.names)},) int64, one for each name;"
                f" they are {self.labels.shape} {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Iterable[int]) -> Split:
        """The images at these positions, in this order."""
        chosen = _positions(indices)
        return replace(
            self,
            names=taken(self.names, chosen),
            labels=self.labels[chosen],
            read=_read_taken(self.read, chosen),
        )

    def without_labels(self) -> Unlabelled:
        """The same images, and nothing of what they show."""
        return Unlabelled(self.names, self.read, self.root, self.domain)


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """N images that are not read yet, of which nobody knows what they show.

    What training gets of a target domain is of this type, so no label of it can get there: neither
    these nor the batches that are made of them have any.
    """

    names: Sequence[str]
    read: Callable[[int], Image.Image]
    root: Path | None = None
    domain: str = ""
    """all as in `Split`"""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Iterable[int]) -> Unlabelled:
        """The images at these positions, in this order."""
        chosen = _positions(indices)
        return replace(self, names=taken(self.names, chosen), read=_read_taken(self.read, chosen))


AnyImages = Split | Unlabelled
Images = TypeVar("Images", Split, Unlabelled, Split | Unlabelled)


def _positions(indices: Iterable[int]) -> np.ndarray:
    if isinstance(indices, np.ndarray):
        return indices.astype(np.int64, copy=False)
    return np.fromiter(indices, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Target:
    """The domain that a network is adapted to."""

    name: str
    images: Unlabelled
    """to adapt to: all that training sees"""
    test: AnyImages
    """to evaluate on; where they have labels these are for reporting (``oracle/…``), and for a
    user who chooses the best model by them on purpose"""
    notes: tuple[str, ...] = ()


def read_shrunk(read: Callable[[int], Image.Image], index: int, least: Least) -> Decoded:
    """The image at a position, decoded at a reduced size where ``read`` can and ``least`` lets it.

    Raises:
        BadImage: it cannot be decoded.
    """
    shrunk = getattr(read, "shrunk", None)
    return Decoded.whole(read(index)) if shrunk is None else shrunk(index, least)


@dataclass(frozen=True)
class Source:
    """A data set: its classes, its two parts, and lines that the user should see once."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    notes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    """of several labelled domains their names, with which the names of their images begin"""
    target: Target | None = None
    """the domain without labels to adapt to"""

    @property
    def is_labelled(self) -> bool:
        """Whether there is anything labelled; without it there is a target alone."""
        return len(self.train) > 0

    def domain_ids(self) -> np.ndarray:
        """(N,) int64: which of ``domains`` each training image is of."""
        number = {name: i for i, name in enumerate(self.domains)}
        ids = (number[name.partition("/")[0]] for name in self.train.names)
        return np.fromiter(ids, dtype=np.int64, count=len(self.train))

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes of data source {self.name} must differ: {self.classes}")
        for split in (self.train, self.val):
            if len(split) and not 0 <= split.labels.min() <= split.labels.max() < len(self.classes):
                raise ValueError(
                    f"labels of data source {self.name} must be 0 to {len(self.classes) - 1}"
                )


def file_of(images: AnyImages, i: int) -> str:
    """What tells an image from all others of a run: its name, and of the target "target:name"."""
    return f"{images.domain}:{images.names[i]}" if images.domain else images.names[i]


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Split into (train, val), each class by itself.

    Of a class with n images, ``fraction * n`` go to val, rounded to the nearest (a half up), but
    never all n. Both parts keep the order of ``split``.
    """
    held = np.zeros(len(split), dtype=bool)
    for members in _by_label(split.labels):
        count = min(int(fraction * len(members) + 0.5), len(members) - 1)
        held[_first_by_hash(split, members, count, f"{seed} hold out")] = True
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))


def keep_at_most(images: Images, seed: int, most: int | None) -> Images:
    """At most so many of the images, chosen by the seed and their names; the order stays."""
    if most is None or most >= len(images):
        return images
    kept = _first_by_hash(images, np.arange(len(images)), most, f"{seed} keep")
    return images.take(np.sort(kept))


def keep_some(split: Split, seed: int, per_class: int | None, total: int | None) -> Split:
    """Keep at most ``per_class`` images of each class, and of these at most ``total``.

    Which ones, the seed and their names decide. The order stays. ``None``: no limit.
    """
    kept = np.arange(len(split))
    if per_class is not None:
        groups = _by_label(split.labels)
        kept = np.concatenate(
            [kept[:0], *(_first_by_hash(split, g, per_class, f"{seed} keep") for g in groups)]
        )
    if total is not None:
        kept = _first_by_hash(split, kept, total, f"{seed} keep")
    return split if len(kept) == len(split) else split.take(np.sort(kept))


def ordered_classes(wanted: Sequence[str | int] | None, found: Sequence[str]) -> list[str]:
    """The classes to keep, in the order of ``wanted``; all that were found if it is None.

    Raises:
        UserError: a wanted class was not found or is named twice, or fewer than two are wanted.
    """
    if wanted is None:
        return list(found)
    names = [str(name) for name in wanted]
    for position, name in enumerate(names):
        if name not in found:
            raise unknown("class", name, found, where="data.classes")
        if name in names[:position]:
            raise UserError(f"data.classes names {name!r} twice; name each class once")
    if len(names) < 2:
        raise UserError(f"data.classes names {len(names)} class; a classifier needs at least two")
    return names


def keep_classes(source: Source, classes: Sequence[str]) -> Source:
    """The source with these of its classes only, in this order, and the images that are theirs."""
    if tuple(classes) == source.classes:
        return source
    new_label = np.full(len(source.classes), -1, dtype=np.int64)
    new_label[[source.classes.index(name) for name in classes]] = np.arange(len(classes))

    def relabel(split: Split) -> Split:
        split = replace(split, labels=new_label[split.labels])
        return split.take(np.flatnonzero(split.labels >= 0))

    return replace(
        source, classes=tuple(classes), train=relabel(source.train), val=relabel(source.val)
    )


def fingerprint(split: Split) -> str:
    """sha256 over names and labels and, for files, their sizes and times of modification.

    For other images the names stand for the pixels: a data set whose content changes under the
    same names keeps its fingerprint. Asks the file system once for each file.
    """
    digest = hashlib.sha256()
    for name, label in zip(split.names, split.labels.tolist(), strict=True):
        digest.update(f"{name}\0{label}\0".encode(errors="surrogateescape"))
        if split.root is not None:
            path = split.root / name
            stat = path.stat() if path.exists() else None  # a broken link is a bad image, later
            digest.update(f"{(stat.st_size, stat.st_mtime_ns) if stat else None}\0".encode())
    return digest.hexdigest()


def some(names: Collection[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are: ``"a, b, c and 4 more"``."""
    shown = ", ".join(map(printable, list(names)[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True, eq=False)
class _Taken:
    read: Callable[[int], Image.Image]
    indices: np.ndarray

    def __call__(self, index: int) -> Image.Image:
        return self.read(int(self.indices[index]))

    def shrunk(self, index: int, least: Least) -> Decoded:
        return read_shrunk(self.read, int(self.indices[index]), least)


def _read_taken(read: Callable[[int], Image.Image], indices: np.ndarray) -> _Taken:
    """A reader of the chosen images; a choice of a choice is flattened into one."""
    if isinstance(read, _Taken):
        return _Taken(read.read, read.indices[indices])
    return _Taken(read, indices)


def _by_label(labels: np.ndarray) -> list[np.ndarray]:
    """The positions that have each of the labels, ascending."""
    if not len(labels):
        return []
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _first_by_hash(split: AnyImages, members: np.ndarray, count: int, salt: str) -> np.ndarray:
    """The ``count`` of these positions whose names come first in the order of the salt."""
    if count >= len(members):
        return members
    high, low = hashes(split.names, members, salt).T
    return members[np.lexsort((low, high))[:count]]
