"""A batch on its way to the network: to the device, and there from 8 bits to normalised floats."""

from __future__ import annotations

import torch
from torch import Tensor

from tl.data.streams import Batch
from tl.data.transforms import normalise
from tl.models.dropout import image_keys
from tl.models.preprocessing import Preprocessing
from tl.randomness import seed_of


def to_network(batch: Batch, device: torch.device, preprocessing: Preprocessing) -> Batch:
    """The tensors of a batch on ``device``; the copy overlaps where memory is pinned.

    Images of 8 bits become (N, channels, S, S) float32, normalised; what is no image of 8 bits any
    more stays as it is.
    """
    there = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    for name, value in there.items():
        if isinstance(value, dict):  # of another domain
            there[name] = to_network(value, device, preprocessing)
    if there["image"].dtype == torch.uint8:
        there["image"] = normalise(there["image"], preprocessing)
    return there


def give_keys(batch: Batch, seed: int, step: int, epoch: int) -> None:
    """Give each image of a micro-batch its ``key``, which dropout goes by.

    Args:
        step: of the run.
        epoch: of the run, that the step is in.
    """
    # Sampled by class an image may be in a step twice: in other rounds, so by other keys.
    batch["key"] = image_keys(seed, step, batch["id"], batch["round"] - epoch)
    for name, part in batch.items():
        if isinstance(part, dict):  # ids of another domain are other images
            give_keys(part, seed_of(name, seed), step, 0)
