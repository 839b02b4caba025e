"""Which places of an image a class goes by: Grad-CAM.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017. With A^k the K maps of a layer and y^c the logit of a class:

    alpha_k = mean over the places ij of dy^c / dA^k_ij,    L = ReLU(sum over k of alpha_k A^k)
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.errors import UserError
from tl.models.network import Network
from tl.models.stages import Step

MOST_PREFIX_TOKENS = 8
"""tokens that stand for no place: of a class, of distillation, registers (of which DINOv2 has 4)"""


def grad_cam(network: Network, images: Tensor, classes: Tensor) -> Tensor:
    """What Grad-CAM says of each image and class, resized to the images and divided by its maximum.

    The layer is the last one before the head that has several places, and whose places the logits
    depend on: a convolutional network's last maps; what goes into the last block of a ViT, as its
    head looks at the class token alone. Tokens are places in rows, those before them are left out.

    Args:
        network: in eval mode.
        images: (N, channels, S, S), normalised.
        classes: int64 (N,).

    Returns:
        (N, S, S) from 0 to 1; an image in which nothing speaks for the class has 0 everywhere.

    Raises:
        UserError: the network has no such layer.
    """
    heat = _maps(network, images, classes)
    heat = F.interpolate(heat[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
    most = heat.amax((-2, -1), keepdim=True)
    return (heat / most.clamp_min(torch.finfo(heat.dtype).tiny))[:, 0]


def _maps(network: Network, images: Tensor, classes: Tensor) -> Tensor:
    """L of each image (N, h, w), of the layer's own size."""
    steps = [step for stage in network.stages[:-1] for step in stage.steps]
    head = list(network.stages[-1].steps)
    shown, x = [], images[:1]
    with torch.no_grad(), network.adapted():
        for at, step in enumerate(steps):
            x = _run(network, [step], x)
            if _places(x) is not None:
                shown.append(at)
    for at in reversed(shown):
        with torch.no_grad(), network.adapted():
            layer = _run(network, steps[: at + 1], images)
        with torch.enable_grad(), network.adapted():
            layer.requires_grad_()
            # A copy: the next step may work in place.
            logits = _run(network, [*steps[at + 1 :], *head], layer.clone())
            [gradient] = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), layer)
        maps, slopes = _places(layer.detach()), _places(gradient)
        assert maps is not None
        assert slopes is not None
        if slopes.any():
            alpha = slopes.mean((2, 3), keepdim=True)
            return (alpha * maps).sum(1).relu()
    raise UserError(
        f"--cam: no stage of {network.architecture} before the head has several places for images "
        f"of {images.shape[-1]} pixels, so there is nothing to show where it looks"
    )


def _run(network: Network, steps: Iterable[Step], x: Tensor) -> Tensor:
    for step in steps:
        model = network.model
        x = model.get_submodule(step)(x) if isinstance(step, str) else step(model, x)
    return x


def _places(x: Tensor) -> Tensor | None:
    """An output as maps (N, C, h, w), or None if it has no places, or a single one."""
    if x.dim() == 3:
        side = math.isqrt(x.shape[1])
        before = x.shape[1] - side**2
        if before > MOST_PREFIX_TOKENS:
            return None
        x = x[:, before:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    elif x.dim() == 4 and x.shape[1] == x.shape[2] != x.shape[3]:  # Swin's, as in `pooled.pool`
        x = x.permute(0, 3, 1, 2)
    return x if x.dim() == 4 and min(x.shape[2:]) > 1 else None
