"""Where images come from: a name in the config to the training and validation images.

A new source is a function ``(data, seed) -> Source`` and a line in `SOURCES`; one outside the
tree is named ``package.module:name``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tl.config import DataConfig
from tl.data.digits import digits
from tl.data.domains import source_free, source_of, with_target
from tl.data.folder import folder
from tl.data.split import Source, keep_classes, keep_some, ordered_classes, some
from tl.errors import UserError, unknown

OpenSource = Callable[[DataConfig, int], Source]

SOURCES: dict[str, OpenSource] = {
    "digits": digits,
    "folder": folder,
}


def open_source(
    data: DataConfig,
    seed: int,
    index: Path | None = None,
    known_classes: Sequence[str] | None = None,
) -> Source:
    """List the images of ``data.source``, read none, and keep those that the config asks for.

    First the source itself, which holds out a validation part if it has none; then
    ``data.classes``; then ``train_per_class``, ``max_train`` and ``max_val``, which leave the
    classes alone. The result is a function of the config, the seed and the images' names.

    Args:
        index: the folder in which folders of images have an index; see `tl.data.folder.folder`.
        known_classes: those of the weights, for a target without a source.

    Raises:
        UserError: no such source or class, or no images to train or to validate on.
    """
    if not data.has_source:
        if known_classes is None:
            raise UserError(
                "there is a target and nothing labelled. Give data.source_root; or, to adapt a "
                "model without its source (objective=shot), give model.weights=RUN, the folder of "
                "the run that trained it"
            )
        return with_target(source_free(known_classes), data, seed, index)
    source = _named(data, index)(data, seed)
    if not isinstance(source, Source):
        raise UserError(
            f"data.source {data.source} returned {type(source).__name__};"
            " it must return a tl.data.split.Source"
        )
    source = keep_classes(source, ordered_classes(data.classes, source.classes))
    if len(source.classes) < 2:
        raise UserError(
            f"data source {source.name} has {len(source.classes)} class"
            f" ({some(source.classes)}); a classifier needs at least two"
        )
    source = replace(
        source,
        train=keep_some(source.train, seed, data.train_per_class, data.max_train),
        val=keep_some(source.val, seed, None, data.max_val),
    )
    if not len(source.train):
        raise UserError(f"data source {source.name} has no training images")
    if not len(source.val):
        raise UserError(
            f"data source {source.name} has no validation images. Add some, or let a larger"
            f" share be held out: data.val_fraction is {data.val_fraction}"
        )
    source = replace(source, notes=(*source.notes, *_classes_without_images(source)))
    return with_target(source, data, seed, index)


def _named(data: DataConfig, index: Path | None) -> OpenSource:
    name = data.source
    if name == "auto":
        name = "digits" if data.labelled_root is None else "folder"
    if data.source_domains is not None and name != "folder":
        raise UserError(
            f"data.source_domains are folders, and data.source is {name}: leave data.source out"
        )
    if name == "folder":
        return partial(source_of, index=index)
    if name in SOURCES:
        return SOURCES[name]
    if name.startswith("torchvision:"):
        from tl.data.torchvision_datasets import named  # imports torch, which the others do not

        return named(name.removeprefix("torchvision:"))
    if ":" in name:
        return _imported(name)
    raise unknown(
        "data source",
        name,
        ["auto", *SOURCES, "torchvision:NAME", "package.module:name"],
        where="data.source",
    )


def _imported(name: str) -> OpenSource:
    """The function that ``package.module:name`` stands for."""
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except (ImportError, ValueError, TypeError) as error:  # the latter two: "", "a..b" and ".a"
        raise UserError(
            f"data.source {name} cannot be imported: {error}. It must be package.module:name,"
            " with the package installed or its folder on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [known for known in vars(module) if not known.startswith("_")]
        raise unknown(f"name in {path}", attribute, public, where="data.source")
    if not callable(found):
        raise UserError(
            f"data.source {name} is {type(found).__name__}, not a function (data, seed) -> Source"
        )
    return found  # what it returns is checked when it has run


def _classes_without_images(source: Source) -> list[str]:
    """A note for each part that lacks some of the classes."""
    notes = []
    for part, split in (("training", source.train), ("validation", source.val)):
        counts = np.bincount(split.labels, minlength=len(source.classes))
        missing = [name for name, count in zip(source.classes, counts, strict=True) if not count]
        if missing:
            noun = "class has" if len(missing) == 1 else "classes have"
            notes.append(f"{len(missing)} {noun} no {part} images: {some(missing)}")
    return notes
