"""What stages of a network put out, pooled to a vector for each image."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from tl.errors import UserError, unknown
from tl.models.network import Network
from tl.models.stages import run_stage


def cuts_of(network: Network, wanted: str | None) -> list[str]:
    """The stages to look behind, first to last: all but the head can be.

    Args:
        wanted: names with commas between them; ``all``; or None, for the last one.

    Raises:
        UserError: no such stage, or the head, which knows nothing of the classes yet.
    """
    names = [stage.name for stage in network.stages[:-1]]
    if wanted is None:
        return names[-1:]
    if wanted == "all":
        return names
    chosen = [name.strip() for name in wanted.split(",")]
    for name in chosen:
        if name == network.stages[-1].name:
            raise UserError(
                f"--cuts {name}: the head is new for each task and its output says nothing yet. "
                f"Give what comes before it: {', '.join(names)}"
            )
        if name not in names:
            raise unknown(f"stage of {network.architecture}", name, [*names, "all"], "--cuts")
    return [name for name in names if name in chosen]


def pooled_outputs(network: Network, images: Tensor, cuts: Collection[str]) -> dict[str, Tensor]:
    """The outputs of some stages, from one pass over the images as far as is needed.

    Args:
        images: (N, 3, S, S), square.
        cuts: names of stages.

    Returns:
        For each, float32 (N, width) on the CPU; see `pool`.
    """
    x, found = images, {}
    for stage in network.stages:
        x = run_stage(stage, network.model, x)
        if stage.name in cuts:
            # A copy: the next stage may work in place.
            found[stage.name] = pool(x).to("cpu", torch.float32, copy=True)
            if len(found) == len(cuts):
                break
    return found


def feature_stage(network: Network, wanted: str | None) -> str:
    """The stage whose pooled output is an image's features: the last but the head, if None.

    Raises:
        UserError: no such stage, or the head.
    """
    names = [stage.name for stage in network.stages[:-1]]
    if wanted is None:
        return names[-1]
    if wanted not in names:
        raise unknown(f"stage of {network.architecture}", wanted, names, "--features-from")
    return wanted


def logits_and_pooled(network: Network, images: Tensor, cut: str | None) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and, of the stage ``cut``, the pooled output: at least float32 (N, width).

    Without a ``cut`` that has a width of 0.
    """
    x, pooled = images, images.new_empty(len(images), 0)
    with network.adapted():
        for stage in network.stages:
            x = run_stage(stage, network.model, x)
            if stage.name == cut:
                pooled = _precise(pool(x)).clone()  # the next stage may work in place
    return x, pooled


def pool(x: Tensor) -> Tensor:
    """The mean (N, C) over space or tokens.

    Args:
        x: (N, C); tokens (N, T, C); pixels (N, C, S, S), or (N, S, S, C) as Swin has them: of
            square images the two equal sides are the space.
    """
    if x.dim() == 2:
        return x
    if x.dim() == 3:
        return _precise(x).mean(1)
    assert x.dim() == 4, x.shape
    channels_last = x.shape[1] == x.shape[2] != x.shape[3]
    return _precise(x).mean((1, 2) if channels_last else (2, 3))


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
