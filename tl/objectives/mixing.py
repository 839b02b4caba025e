"""Images of a batch mixed in pairs, on the device: mixup and CutMix.

Image 2i of a global batch (of a micro-batch, with gradient accumulation) is mixed with image
2i + 1, and 2i + 1 with 2i; an odd last one stays as it is, and so does one whose mate could not be
decoded. The papers mix a batch with a permutation of itself by one share for all; here each pair
has a share and a box of its own, functions of the pair's images, the step and the seed: the same on
any number of processes and after a resume, and the host waits for nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.data.streams import Batch
from tl.models.dropout import image_draws

_PLACE = 2**40  # apart from all layers of dropout
_DRAWS = 5


def mixed(batch: Batch, mixup: float, cutmix: float, classes: int) -> tuple[Batch, Tensor]:
    """The batch with its images mixed, and their shares of the labels (N, C).

    ``label`` becomes that with the larger share. With both ``mixup`` and ``cutmix`` above 0, each
    pair gets one of the two, with the same chance.

    Args:
        batch: image (N, 3, H, W) float, label, key and mate (N,) int64.
    """
    assert batch["start"] == 0, "images are mixed, not features"
    images, labels, mate = batch["image"], batch["label"], batch["mate"]
    draws = uniforms(batch["key"] ^ batch["key"][mate], _DRAWS)  # the same for both of a pair
    others = images[mate]
    if mixup:
        share = symmetric_beta(mixup, draws[:, 0], draws[:, 1])
        blended = torch.lerp(others, images, share.to(images.dtype).view(-1, 1, 1, 1))
    if cutmix:
        share_cut = symmetric_beta(cutmix, draws[:, 0], draws[:, 1])
        inside, share_cut = box(share_cut, draws[:, 2], draws[:, 3], images.shape[2:])
        pasted = torch.where(inside[:, None], others, images)
    if mixup and cutmix:
        chosen = draws[:, 4] < 0.5
        share = torch.where(chosen, share, share_cut)
        result = torch.where(chosen.view(-1, 1, 1, 1), blended, pasted)
    elif mixup:
        result = blended
    else:
        share, result = share_cut, pasted
    own, theirs = F.one_hot(labels, classes), F.one_hot(labels[mate], classes)
    precise = torch.promote_types(images.dtype, torch.float32)
    targets = (share[:, None] * own + (1 - share[:, None]) * theirs).to(precise)
    majority = torch.where(share >= 0.5, labels, labels[mate])
    return {**batch, "image": result, "label": majority}, targets


def symmetric_beta(alpha: float, u: Tensor, v: Tensor) -> Tensor:
    """Values of Beta(alpha, alpha) from two uniform ones in (0, 1), all of one shape.

    T = sqrt(2 alpha (u^(-1/alpha) - 1)) cos(2 pi v) has Student's distribution with 2 alpha degrees
    of freedom (Bailey, Mathematics of Computation 1994), and (1 + T / sqrt(2 alpha + T²)) / 2 then
    is Beta(alpha, alpha) (Devroye, "Random variate generation in one line of code", 1996).
    """
    side = torch.cos(2 * math.pi * v)
    return (1 + side / torch.sqrt(1 / torch.expm1(-torch.log(u) / alpha) + side.square())) / 2


def box(share: Tensor, u: Tensor, v: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Which places (N, H, W) are cut out, and the share (N,) of the area that is left.

    As Yun et al. do ("CutMix", ICCV 2019): a box of H sqrt(1 - share) by W sqrt(1 - share), rounded
    down, around a uniform centre, cut off at the image's edges; the share is then that of the area.
    """
    left, right = _interval(share, u, size[1])
    top, bottom = _interval(share, v, size[0])
    column = torch.arange(size[1], device=share.device)
    row = torch.arange(size[0], device=share.device)
    across = (column >= left[:, None]) & (column < right[:, None])
    down = (row >= top[:, None]) & (row < bottom[:, None])
    area = ((right - left) * (bottom - top)).to(share.dtype)
    return down[:, :, None] & across[:, None, :], 1 - area / (size[0] * size[1])


def _interval(share: Tensor, u: Tensor, length: int) -> tuple[Tensor, Tensor]:
    half = torch.floor(length * torch.sqrt(1 - share)).long() // 2
    centre = torch.floor(u * length).long()
    return (centre - half).clamp(0, length), (centre + half).clamp(0, length)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """``count`` values in (0, 1) for each of the keys (N,): float64 (N, count), of 48 bits each."""
    draws = image_draws(keys, _PLACE, 4 * count).reshape(-1, count, 4).double() + 2**15
    high, middle, low, _ = draws.unbind(2)
    return high * 2.0**-16 + middle * 2.0**-32 + (low + 0.5) * 2.0**-48
