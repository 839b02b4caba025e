"""Domains: one or several labelled folders to learn from, and one without labels to adapt to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

from tl.config import DataConfig
from tl.data.folder import TEST, TRAIN, VAL, folder, images_in, part_of
from tl.data.image_tree import ImageTree
from tl.data.images import Decoded, Least
from tl.data.names import Names
from tl.data.split import (
    AnyImages,
    Source,
    Split,
    Target,
    Unlabelled,
    keep_at_most,
    read_shrunk,
    some,
)
from tl.errors import UserError, printable, unknown


def source_of(data: DataConfig, seed: int, index: Path | None) -> Source:
    """The labelled images of ``data.source_root``, or of the folders ``data.source_domains``.

    The images of several domains are one source, whose names begin with their domain's. Its classes
    are those of all domains together, sorted; not each domain has to have each.

    Raises:
        UserError: see `folder`; a domain is no folder, is named twice, or shares no class with
            another one.
    """
    if data.source_domains is None:
        return folder(data, seed, index)
    names = _named(data, data.source_domains, "data.source_domains")
    found = [_domain(data, name, seed, index) for name in names]
    if len(found) == 1:
        return found[0]
    classes = sorted({name for source in found for name in source.classes})
    for name, source in zip(names, found, strict=True):
        others = {c for other in found if other is not source for c in other.classes}
        if not others & set(source.classes):
            raise UserError(
                f"domain {name} has no class in common with the others: {some(source.classes)}"
                f" here, {some(sorted(others))} there. Leave it out of data.source_domains"
            )
    assert data.root is not None  # `DataConfig` has seen to it
    root = Path(data.root).expanduser()
    return Source(
        f"{root}: {', '.join(names)}",
        tuple(classes),
        _joined([s.train for s in found], names, [s.classes for s in found], classes, root),
        _joined([s.val for s in found], names, [s.classes for s in found], classes, root),
        tuple(note for source in found for note in source.notes),
        domains=tuple(names),
    )


def target_of(data: DataConfig, source: Source, seed: int, index: Path | None) -> Target:
    """The images of ``data.target_root`` or ``data.target_domain``.

    With train/ and val/ in it, adapted to the first and tested on the second; else adapted to and
    tested on the same images, as is usual (transductive). To adapt to are all images below the
    folder, or below train/, whatever the folders in it are called. Class folders are looked at for
    the test alone, and those that the source does not know are left out of it.

    Args:
        source: has classes; those of the target are found among them by name.

    Raises:
        UserError: there are no images to adapt to or to test on, it is the folder of the source,
            or it has class folders of which the source knows none.
    """
    root, where = _target_root(data)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"{where} {root} {what}. Give the folder with the target's images")
    for other in _source_roots(data):
        if other.exists() and root.samefile(other):
            raise UserError(
                f"{where} {root} is the folder of the source as well, so there is nothing to adapt "
                "to. Give the folder of the other domain"
            )
    tree = ImageTree.at(root, data, index)
    adapted, tested, notes = _parts(tree, source.classes)
    images = _images(tree, adapted, where)
    kept = keep_at_most(images, seed, data.max_target)
    same = adapted == tested
    to_test = kept if same else _images(tree, tested, where)
    test: AnyImages = to_test
    if data.target_labels == "auto" and (found := tree.folders(tested)):
        test, strange = _labelled(to_test, root / tested, tested, found, source.classes, where)
        notes += strange
    if same:
        notes.append("the target is adapted to and tested on the same images")
    else:
        test = keep_at_most(test, seed, data.max_val)
    tree.keep(index)
    return Target(str(root), kept, test, (*notes, *tree.notes()))


def _parts(tree: ImageTree, classes: Sequence[str]) -> tuple[str, str, list[str]]:
    """The folder to adapt to, the one to test on, "" for the target's own; and notes."""
    children = [name for name in tree.folders("") if name not in classes]
    train, val = part_of(tree.root, children, TRAIN), part_of(tree.root, children, VAL)
    alone = train or val
    if not alone:
        return "", "", []
    if not (train and val) and any(name.lower() not in TRAIN + VAL + TEST for name in children):
        return "", "", []  # it is one folder among others, which are all images of the target
    used = {train or alone, val or alone}
    unused = [f"{name}/" for name in tree.folders("") if name not in used]
    return train or alone, val or alone, [f"not used: {some(unused)}"] if unused else []


def _images(tree: ImageTree, part: str, where: str) -> Unlabelled:
    """All images at any depth below a part."""
    images = images_in(tree, part)
    if not len(images):
        raise UserError(
            f"{where} {tree.root / part} has no images. Files that end in {tree.listed_endings} "
            "count (data.extensions)"
        )
    return replace(images, domain="target")


def _labelled(
    images: Unlabelled,
    place: Path,
    part: str,
    found: Sequence[str],
    classes: Sequence[str],
    where: str,
) -> tuple[Split, list[str]]:
    """Those of the images that lie in a class folder, in the same order; and notes.

    Args:
        place: the folder of the class folders ``found``.
        part: how it is called in the images' names.
    """
    known = [name for name in found if name in classes]
    if not known:
        raise UserError(
            f"{where} {place} and the source have no class in common: {some(found)} here, "
            f"{some(classes)} there. Rename the folders; or, if they are no classes, give "
            "data.target_labels=none"
        )
    labels = _labels(images.names, part, classes)
    here = np.flatnonzero(labels >= 0)
    if not len(here):
        raise UserError(
            f"{where} {place} has no images to test on: of the {len(images)} there none is in the "
            f"folder of a class of the source ({some(known)}). Add some, give a larger "
            "data.max_target, or data.target_labels=none"
        )
    notes = []
    if strange := [name for name in found if name not in known]:
        what = "class of the target is" if len(strange) == 1 else "classes of the target are"
        notes.append(
            f"{len(strange)} {what} not the source's, left out of the test: {some(strange)}"
        )
    of_class = images if len(here) == len(images) else images.take(here)
    split = Split(of_class.names, labels[here], of_class.read, of_class.root, of_class.domain)
    return split, notes


def _labels(names: Sequence[str], part: str, classes: Sequence[str]) -> np.ndarray:
    """(N,) int64: the positions in ``classes`` of the folders that files are in; -1 for others."""
    position = {name: label for label, name in enumerate(classes)}
    start = len(part) + 1 if part else 0

    def label(name: str) -> int:
        folder, slash, _ = name[start:].partition("/")
        return position.get(folder, -1) if slash else -1

    return np.fromiter(map(label, names), np.int64, count=len(names))


def _domain(data: DataConfig, name: str, seed: int, index: Path | None) -> Source:
    assert data.root is not None
    root = str(Path(data.root).expanduser() / name)
    # Not every domain has every class that is asked for; `open_source` looks at all together.
    return folder(data.model_copy(update={"root": root, "classes": None}), seed, index)


def _named(data: DataConfig, wanted: Sequence[str | int], where: str) -> list[str]:
    """The names of folders in ``data.root``."""
    assert data.root is not None
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"data.root {root} is no folder. Give the one with a folder for each domain"
        )
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    names = [str(name) for name in wanted]
    for position, name in enumerate(names):
        if name not in there:
            raise unknown("domain", name, there, where=f"{where}, {root}")
        if name in names[:position]:
            raise UserError(f"{where} names {printable(name)} twice; name each domain once")
    return names


def _target_root(data: DataConfig) -> tuple[Path, str]:
    """Where the target is, and the key that says so."""
    if data.target_root is not None:
        return Path(data.target_root).expanduser(), "data.target_root"
    assert data.root is not None
    assert data.target_domain is not None
    (name,) = _named(data, [data.target_domain], "data.target_domain")
    return Path(data.root).expanduser() / name, "data.target_domain"


def _source_roots(data: DataConfig) -> list[Path]:
    root = data.labelled_root
    if root is None:
        return []
    names = data.source_domains or [""]
    return [Path(root).expanduser() / str(name) for name in names]


def _joined(
    parts: Sequence[Split],
    domains: Sequence[str],
    their_classes: Sequence[Sequence[str]],
    classes: Sequence[str],
    root: Path,
) -> Split:
    """One split of several, whose names are the domains' and theirs, in terms of ``classes``."""
    named = [(domain, part.names) for domain, part in zip(domains, parts, strict=True)]
    names = Names.of([f"{domain}/{name}" for domain, of_part in named for name in of_part])
    labels = [
        np.array([classes.index(name) for name in theirs], dtype=np.int64)[part.labels]
        for theirs, part in zip(their_classes, parts, strict=True)
    ]
    read = _ReadJoined([p.read for p in parts], list(accumulate(len(p) for p in parts)))
    return Split(names, np.concatenate(labels), read, root)


@dataclass(frozen=True, eq=False)
class _ReadJoined:
    reads: Sequence[Callable[[int], Image.Image]]
    ends: Sequence[int]

    def __call__(self, index: int) -> Image.Image:
        read, at = self._of(index)
        return read(at)

    def shrunk(self, index: int, least: Least) -> Decoded:
        return read_shrunk(*self._of(index), least)

    def _of(self, index: int) -> tuple[Callable[[int], Image.Image], int]:
        part = next(i for i, end in enumerate(self.ends) if index < end)
        return self.reads[part], index - (self.ends[part - 1] if part else 0)


def source_free(classes: Sequence[str]) -> Source:
    """No labelled images: the classes of a network that was trained before, and no more."""
    nothing = Split((), np.zeros(0, np.int64), _ReadJoined((), ()), None)
    return Source("no source", tuple(classes), nothing, nothing)


def with_target(source: Source, data: DataConfig, seed: int, index: Path | None) -> Source:
    """The source with the target that the config names, if any."""
    if not data.has_target:
        return source
    target = target_of(data, source, seed, index)
    return replace(source, target=target, notes=(*source.notes, *target.notes))
