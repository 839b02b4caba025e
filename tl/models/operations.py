"""What torchvision's networks do between their submodules: steps of a stage, as functions.

Each takes (model, x). None changes x, which may be a cached tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def flatten(model: nn.Module, x: Tensor) -> Tensor:
    """(N, C, 1, 1) to (N, C)."""
    return torch.flatten(x, 1)


def mean_pool(model: nn.Module, x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C)."""
    return x.mean([2, 3])


def mean_pool_last(model: nn.Module, x: Tensor) -> Tensor:
    """(N, H, W, C) to (N, C)."""
    return x.mean([1, 2])


def mean_tokens(model: Any, x: Tensor) -> Tensor:
    """(N, L, C) to (N, C): the mean of the tokens that stand for patches."""
    return x[:, getattr(model, "num_prefix_tokens", 0) :].mean(1)


def standardise(model: nn.Module, x: Tensor) -> Tensor:
    """(N, C) with mean 0 and variance 1 in each row: a LayerNorm without parameters."""
    return nn.functional.layer_norm(x, x.shape[-1:])


def relu(model: nn.Module, x: Tensor) -> Tensor:
    """An activation that a network applies without a module (DenseNet's last)."""
    return nn.functional.relu(x)


def adaptive_pool(model: nn.Module, x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 1, 1)."""
    return nn.functional.adaptive_avg_pool2d(x, (1, 1))


def transform_input(model: Any, x: Tensor) -> Tensor:
    """From ImageNet's normalisation to the one that GoogLeNet and Inception were trained with.

    torchvision knows it for three channels; of any other number each gets the mean of the three:
    normalised by 0.449 and 0.226 before, by 0.5 and 0.5 after.
    """
    if x.shape[1] == 3 or not model.transform_input:
        return model._transform_input(x)
    return x * (0.226 / 0.5) + (0.449 - 0.5) / 0.5


def vit_embed(model: Any, x: Tensor) -> Tensor:
    """Images (N, 3, H, W) to class token and patches with positions, (N, 1 + patches, D)."""
    x = model._process_input(x)
    x = torch.cat([model.class_token.expand(x.shape[0], -1, -1), x], dim=1)
    return model.encoder.dropout(x + model.encoder.pos_embedding)


def class_token(model: nn.Module, x: Tensor) -> Tensor:
    """(N, 1 + patches, D) to the class token's (N, D)."""
    return x[:, 0]
