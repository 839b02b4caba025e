"""Which of a phase's images go through the frozen prefix once, and which in every epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from tl.config import CacheConfig, Phase
from tl.data.features.folder import in_words
from tl.data.features.layout import Layout
from tl.data.sampler import TargetSampler, TrainSampler
from tl.data.split import Source
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing
from tl.objectives import objective_class, why_images
from tl.objectives.objective import Stream

SUGGESTED_VIEWS = 8
VALIDATION, TEST = "validation", "target's test"


@dataclass(frozen=True)
class FeaturePlan:
    """What is kept of the images of a phase."""

    train: bool = False
    """the features of all that is trained on are kept"""
    val: bool = False
    """those of the validation images are"""
    test: bool = False
    """those of the images that the target is tested on are"""
    notes: tuple[str, ...] = ()
    """for people"""


def plan_features(
    cache: CacheConfig,
    phase: Phase,
    network: Network,
    preprocessing: Preprocessing,
    source: Source,
    sampler: TrainSampler,
    half: bool,
) -> FeaturePlan:
    """The plan for a phase that `freeze` has set up, with an estimate of what it takes on the disk.

    Args:
        sampler: of the whole phase.
        half: the precision is bf16 or fp16.
    """
    if not network.frozen_prefix:
        return FeaturePlan()
    augments = [augment_of(phase, stream) for stream in objective_class(phase.objective).streams]
    views = [views_of(cache, augment) for augment in augments]
    notes = []
    if cache.views and any(augment != "none" for augment in augments):
        notes.append(f"each training image has {cache.views} views, which epochs take in turn")
    if not cache.features:
        return FeaturePlan(notes=(*notes, "features are not kept"))
    row = _row_bytes(network, preprocessing, half)
    not_features = why_images(phase)
    kept, left = set(), cache.max_bytes
    for part, images in _images_by_part(phase, source, sampler, views).items():
        if not images:
            continue
        size = images * row
        of_images = not_features if part.startswith("training") else ""
        constant = not part.startswith("training") or None not in views
        if size <= left and constant and not of_images:
            kept.add(part)
            left -= size
            notes.append(f"features of {part} images are kept, {in_words(size)}")
        elif of_images:
            notes.append(f"features of {part} images are not kept: {of_images}")
        elif size > left:
            notes.append(
                f"features of {part} images are not kept: they would take {in_words(size)}, and "
                f"cache.max_bytes leaves {in_words(left)}"
            )
        else:
            notes.append(
                f"features of {part} images are not kept: {_what_varies(phase)} makes another "
                f"view in every epoch (cache.views={SUGGESTED_VIEWS} would make and keep "
                f"{SUGGESTED_VIEWS} of each image)"
            )
    train = any(part.startswith("training") for part in kept)
    return FeaturePlan(train, VALIDATION in kept, TEST in kept, tuple(notes))


def augment_of(phase: Phase, stream: Stream) -> str:
    """The augmentation of a stream of the phase's objective."""
    return "trivial" if stream == "strong" else phase.augment


def views_of(cache: CacheConfig, augment: str) -> int | None:
    """How many views an image has in a phase with a frozen prefix, which rounds take in turn.

    None: another one in every round.
    """
    return 1 if augment == "none" else cache.views


def _what_varies(phase: Phase) -> str:
    if phase.augment != "none":
        return f"augment={phase.augment}"
    return f"the strong augmentation of objective={phase.objective}"


def _images_by_part(
    phase: Phase, source: Source, sampler: TrainSampler, views: Sequence[int | None]
) -> dict[str, int]:
    """How many images, each view counted, there are of what is kept together or not at all.

    All that a step trains on goes into the network at the same stage: so it is one part.
    """
    streams, target = objective_class(phase.objective).streams, source.target

    def seen(images: int, rounds: int, views: Iterable[int | None]) -> int:
        return sum(images * min(of_each or 1, rounds) for of_each in views)

    parts = {VALIDATION: len(source.val), TEST: len(target.test) if target else 0}
    training = seen(sampler.num_images, len(sampler.rounds()), views[:1])
    name = "training" if streams[0] == "source" else "training (target)"
    if "target" in streams[1:] and target is not None:
        others = TargetSampler(sampler, len(target.images), 0)
        training += seen(len(target.images), len(others.rounds()), views[1:])
        name = "training (source and target)"
    return {**parts, name: training}


def _row_bytes(network: Network, preprocessing: Preprocessing, half: bool) -> int:
    """Bytes that the features of an image take, by sending an empty one through."""
    parameter = next(network.parameters())
    size = preprocessing.crop_size
    shape = (1, network.in_channels, size, size)
    image = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    features = network.features(image, network.frozen_prefix)
    layout = Layout.of(features.to(torch.bfloat16 if half else torch.float32), rows=1)
    return layout.stride
