"""The real images that an export is checked on, as the run itself sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tl.cache_folder import cache_folder
from tl.data.folder import images_in, labelled
from tl.data.image_tree import ImageTree
from tl.data.sampler import EvaluationSampler
from tl.data.split import Split, keep_some
from tl.data.streams import BadImages, Batch, default_workers, open_stream
from tl.data.transforms import plain_view
from tl.engine.evaluation_request import Request
from tl.engine.score import open_data
from tl.errors import UserError
from tl.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Images:
    """Images to check on."""

    name: str
    """without the folders above: it goes into a card for others"""
    split: Split
    labelled: bool
    """or its labels mean nothing"""
    there: int
    """how many there are, of which these were chosen"""
    notes: tuple[str, ...]

    @property
    def described(self) -> str:
        """In words."""
        chosen = len(self.split) < self.there
        return self.name + (f", {len(self.split):,} of {self.there:,}" if chosen else "")


def open_images(asked: Request, classes: Sequence[str], most: int) -> Images:
    """The validation images of the run, or those of the folder that was given.

    A folder without class folders of the model's classes is images that nobody knows the class of.

    Args:
        most: keep that many, chosen by the seed.

    Raises:
        UserError: there are none, or nothing says where they are.
    """
    data = asked.config.data
    if asked.folder is not None and not _has_classes(asked, classes):
        tree = ImageTree.at(asked.folder, data)
        found = images_in(tree, "")
        if not len(found):
            raise UserError(
                f"no images in {asked.folder}. Files that end in {tree.listed_endings} count"
            )
        zeros = np.zeros(len(found), np.int64)
        split, known, notes = Split(found.names, zeros, found.read), False, tuple(tree.notes())
    elif asked.folder is not None:
        index = cache_folder(asked.config.cache) / "index"
        split, listed = labelled(asked.folder, classes, data, index)
        notes, known = tuple(listed), True
    else:
        try:
            _, split, more = open_data(asked, classes)
        except UserError as error:
            raise UserError(
                f"{error}\nAn export is checked on real images before it is called done: if the "
                "run's own are not here, give others by --images FOLDER"
            ) from None
        notes, known = tuple(more), True
    own = "the run's validation images"
    name = own if asked.folder is None else asked.folder.resolve().name
    chosen = keep_some(split, asked.config.seed, None, most)
    return Images(name, chosen, known, len(split), notes)


def _has_classes(asked: Request, classes: Sequence[str]) -> bool:
    assert asked.folder is not None
    below = [folder for folder in (asked.folder / "val", asked.folder) if folder.is_dir()]
    names = {child.name for folder in below for child in folder.iterdir() if child.is_dir()}
    return bool(names & set(classes))


def batches(
    images: Images, asked: Request, preprocessing: Preprocessing, bad: BadImages
) -> Iterator[Batch]:
    """The images, as validation sees them: see `tl.data.streams.Batch`.

    Raises:
        UserError: an image that cannot be decoded, where such are not left out.
    """
    data = asked.config.data
    workers = default_workers(1) if data.workers is None else data.workers
    sampler = EvaluationSampler(len(images.split), asked.batch_size, 0, 1)
    stream = open_stream(
        images.split,
        plain_view(preprocessing),
        sampler,
        seed=asked.config.seed,
        size=preprocessing.crop_size,
        channels=preprocessing.channels,
        decode=data.decode,
        workers=min(workers, len(sampler) - 1),
        pin_memory=False,
    )
    for batch in stream:
        bad.meet(batch["bad"])
        if batch["weight"].any():
            yield batch


def read_all(
    images: Images, asked: Request, preprocessing: Preprocessing, bad: BadImages
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (N, channels, S, S) uint8, labels (N,) and ids (N,) int64 of what can be decoded.

    So many are kept that they fit: `Wish.num_images` of 224 pixels take 75 MB.

    Raises:
        UserError: a bad image, where such are not left out, or not one that can be read.
    """
    found = list(batches(images, asked, preprocessing, bad))
    if not found:
        raise UserError(f"not one image of {images.name} could be read")
    pixels, labels, ids = (
        torch.cat([b[key][b["weight"] > 0] for b in found]) for key in ("image", "label", "id")
    )
    return pixels, labels, ids
