"""Which of a phase's images go through the frozen prefix once, and which in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tl.config import CacheConfig, Phase
from tl.data.features.folder import in_words
from tl.data.features.layout import Layout
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing
from tl.objectives import why_images

SUGGESTED_VIEWS = 8


@dataclass(frozen=True)
class FeaturePlan:
    """What is kept of the images of a phase."""

    views: int | None
    """of each training image, round r takes number r modulo this; None: a new one in every round"""
    train: bool
    """the features of the training images are kept"""
    val: bool
    """those of the validation images are"""
    notes: tuple[str, ...] = ()
    """for people"""


def plan_features(
    cache: CacheConfig,
    phase: Phase,
    network: Network,
    preprocessing: Preprocessing,
    images: Sequence[int],
    rounds: int,
    half: bool,
) -> FeaturePlan:
    """The plan for a phase that `freeze` has set up, with an estimate of what it takes on the disk.

    Args:
        images: how many there are to train and to validate on.
        rounds: of the phase, in which an image is seen once: epochs, unless classes are sampled.
        half: the precision is bf16 or fp16.
    """
    if not network.frozen_prefix:
        return FeaturePlan(None, train=False, val=False)
    views = 1 if phase.augment == "none" else cache.views
    notes = []
    if phase.augment != "none" and views:
        notes.append(f"each training image has {views} views, which epochs take in turn")
    if not cache.features:
        return FeaturePlan(views, train=False, val=False, notes=(*notes, "features are not kept"))
    row = _row_bytes(network, preprocessing, half)
    num_train, num_val = images
    not_features = why_images(phase)
    sizes = {"validation": num_val * row, "training": num_train * row * min(views or 1, rounds)}
    kept, left = {}, cache.max_bytes
    for part, size in sizes.items():
        of_images = not_features if part == "training" else ""
        constant = part == "validation" or views is not None
        kept[part] = size <= left and constant and not of_images
        if kept[part]:
            left -= size
            notes.append(f"features of {part} images are kept, {in_words(size)}")
        elif of_images:
            notes.append(f"features of training images are not kept: {of_images}")
        elif size > left:
            notes.append(
                f"features of {part} images are not kept: they would take {in_words(size)}, and "
                f"cache.max_bytes leaves {in_words(left)}"
            )
        else:
            notes.append(
                f"features of {part} images are not kept: augment={phase.augment} makes another "
                f"view in every epoch (cache.views={SUGGESTED_VIEWS} would make and keep "
                f"{SUGGESTED_VIEWS} of each image)"
            )
    return FeaturePlan(views, kept["training"], kept["validation"], tuple(notes))


def _row_bytes(network: Network, preprocessing: Preprocessing, half: bool) -> int:
    """Bytes that the features of an image take, by sending an empty one through."""
    parameter = next(network.parameters())
    size = preprocessing.crop_size
    shape = (1, network.in_channels, size, size)
    image = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    features = network.features(image, network.frozen_prefix)
    layout = Layout.of(features.to(torch.bfloat16 if half else torch.float32), rows=1)
    return layout.stride
