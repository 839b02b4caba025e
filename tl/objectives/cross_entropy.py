"""Cross-entropy of an image, with classes weighted and easy images counted less where asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.config import parse_class_weights


def class_weights(kind: str, counts: Tensor | None) -> Tensor | None:
    """The weights (C,) of the classes, float64, for a phase's ``class_weights``; None for none.

    Of a class with n training images the weight is proportional to

    - balanced: 1 / n
    - effective(beta): (1 - beta) / (1 - beta ** n), one over the effective number of images (Cui
      et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019)

    They are scaled so that the mean of the weights over all training images is 1. (The paper scales
    their sum to C.) So the loss of a batch is Σ w(yᵢ) lᵢ / N with the number N of its images, not
    with the sum of their weights: each image's part is the same in any batch, on any number of
    processes, and the learning rate keeps its meaning. A class without images has weight 0.

    Args:
        counts: int64 (C,), the training images of each class.
    """
    name, beta = parse_class_weights(kind)
    if name == "none":
        return None
    assert counts is not None, "a run gives them"
    n = counts.double()
    weights = 1 / n
    if name == "effective":
        weights = (beta - 1) / torch.expm1(n * torch.log(n.new_tensor(beta)))
    weights = torch.where(n > 0, weights, 0.0)
    return weights * (n.sum() / (n * weights).sum())


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    gamma: float = 0.0,
) -> Tensor:
    """The loss (N,) of each image: -Σ_c t_c w_c (1 - p_c)^gamma log p_c with p = softmax(logits).

    t are the image's shares of the labels, (1 - smoothing) t + smoothing / C. With one label this
    is torch's cross-entropy for gamma 0, and for w 1 the focal loss of Lin et al. ("Focal Loss for
    Dense Object Detection", ICCV 2017), -(1 - p)^gamma log p; the sum over shares carries that over
    to smoothed and mixed labels.

    Args:
        logits: (N, C).
        labels: int64 (N,), or the shares (N, C).
        weights: of the classes, (C,).
    """
    if weights is not None:
        weights = weights.to(logits.dtype)
    if gamma == 0:
        return F.cross_entropy(
            logits, labels, weight=weights, reduction="none", label_smoothing=smoothing
        )
    shares = labels
    if labels.dim() == 1:
        shares = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    shares = (1 - smoothing) * shares + smoothing / logits.shape[1]
    log_p = F.log_softmax(logits, 1)
    # Not 1 - p: near p = 1 that is all rounding. Not 0: the slope of 0 ** gamma is infinite.
    hard = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny) ** gamma
    losses = -shares * hard * log_p
    return (losses if weights is None else losses * weights).sum(1)
