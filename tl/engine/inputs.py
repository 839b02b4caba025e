"""A batch on its way to the network: to the device, and there from 8 bits to normalised floats."""

from __future__ import annotations

import torch
from torch import Tensor

from tl.data.streams import Batch
from tl.data.transforms import normalise
from tl.models.preprocessing import Preprocessing


def to_network(batch: Batch, device: torch.device, preprocessing: Preprocessing) -> Batch:
    """The tensors of a batch on ``device``; the copy overlaps where memory is pinned.

    Images of 8 bits become (N, channels, S, S) float32, normalised; what is no image of 8 bits any
    more stays as it is.
    """
    there = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    if there["image"].dtype == torch.uint8:
        there["image"] = normalise(there["image"], preprocessing)
    return there
