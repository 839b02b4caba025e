"""Position embeddings of another image size: interpolated, as the network's library does it.

torchvision's ViT and timm's networks with a ``pos_embed`` have an embedding for each patch; timm's
Swin has tables of relative positions that follow from the window, and windows shrink where an image
has less to fill them. torchvision's Swin and MaxViT keep their windows at any size, so theirs fit.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from tl.errors import UserError
from tl.models import timm_models
from tl.models.network import Network

_TABLE = "relative_position_bias_table"


def fit_positions(
    network: Network, state: dict[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """``state`` with positions for the network's image size, and for people what was done.

    What cannot be interpolated is left as it is: whoever loads it says that it does not fit.

    Raises UserError if embeddings of a ViT are those of no square grid of patches.
    """
    if isinstance(network.model, VisionTransformer):
        name = "encoder.pos_embedding"
        changed = _of_torchvision(network.model, name, state, source)
    elif timm_models.is_timm(network.architecture):
        changed = _of_timm(network, state)
    else:
        changed = {}
    notes = [
        f"{name}: interpolated from {tuple(state[name].shape)} to {tuple(value.shape)}"
        for name, value in changed.items()
    ]
    return {**state, **changed}, notes


def _of_torchvision(
    model: VisionTransformer, name: str, state: dict[str, Tensor], source: str
) -> dict[str, Tensor]:
    if name not in state:
        return {}
    found, wanted = state[name], model.encoder.pos_embedding
    if found.shape == wanted.shape or found.dim() != 3 or found.shape[2] != wanted.shape[2]:
        return {}
    try:
        positions = {name: found.float()}
        return dict(interpolate_embeddings(model.image_size, model.patch_size, positions))
    except ValueError as error:
        raise UserError(f"{source}: {name} is no square grid of patches: {error}") from error


def _of_timm(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    model: Any = network.model
    layers = timm_models.library(network.architecture).layers
    changed = {}
    for name, wanted in model.state_dict().items():
        found = state.get(name)
        if found is None or found.shape == wanted.shape or found.shape[-1] != wanted.shape[-1]:
            continue
        if name == "pos_embed" and found.dim() == wanted.dim() == 3:
            grid: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
            # DeiT III and others have no embedding for the class token.
            prefix = wanted.shape[1] - grid[0] * grid[1] if grid else -1
            patches = found.shape[1] - prefix
            if prefix >= 0 and patches > 0 and math.isqrt(patches) ** 2 == patches:
                changed[name] = layers.resample_abs_pos_embed(
                    found.float(), list(grid), num_prefix_tokens=prefix
                )
        if name.endswith(_TABLE) and found.dim() == wanted.dim() == 2:
            window = model.get_submodule(name.removesuffix(f".{_TABLE}")).window_size
            if math.isqrt(len(found)) ** 2 == len(found):
                changed[name] = layers.resize_rel_pos_bias_table(
                    found.float(), new_window_size=window, new_bias_shape=wanted.shape
                )
    return changed
