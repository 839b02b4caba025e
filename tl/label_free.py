"""How well a model suits images that have no labels, from what it calls them alone.

Functions of probabilities (N, C), to choose between checkpoints by when the labels of the domain
that matters are not to be looked at. All in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 20_000
"""rows that the neighbourhood density is taken of at most. Its time goes with their square: for so
many, of 65 classes, 13 s of one CPU core"""
ROWS = 128
"""of a block of similarities: 20 MB with as many columns as there can be, half as fast with 512"""


def entropy(probabilities: Tensor) -> Tensor:
    """H(p) = -Σ_c p_c log p_c of each row, in nats: float64 (…) of (…, C), from 0 to log C."""
    return torch.special.entr(probabilities.double()).sum(-1)


def information_maximisation(mean: Tensor, mean_entropy: float) -> float:
    """H(mean p) - mean H(p): what the prediction says of the image, in nats; the higher the better.

    Shi and Sha, "Information-Theoretical Learning of Discriminative Clusters for Unsupervised
    Domain Adaptation", ICML 2012: the mutual information of image and prediction. It is high where
    single images are called with confidence and all classes are called. Both terms are means, so
    sums over processes and batches give it exactly.

    Args:
        mean: (C,), the mean of the images' probabilities.
        mean_entropy: the mean of their `entropy`.

    Returns:
        0 to log C.
    """
    return float(entropy(mean)) - mean_entropy


def soft_neighbourhood_density(probabilities: Tensor, temperature: float = 0.05) -> float:
    """SND: how densely images lie among those that are called alike; the higher the better.

    Saito, Kim, Teterwak, Sclaroff, Darrell and Saenko, "Tune it the Right Way: Unsupervised
    Validation of Domain Adaptation via Soft Neighborhood Density", ICCV 2021. With the cosine
    s_ij of the probabilities of images i and j,

        p_ij = exp(s_ij / T) / Σ_{k ≠ i} exp(s_ik / T),    SND = -1/N Σ_i Σ_{j ≠ i} p_ij log p_ij

    Of more than `MOST` images it is that of as many of them, evenly spaced, so their order must not
    be that of the processes; by blocks of `ROWS`, so it takes no more memory for more images.

    Args:
        probabilities: (N, C), of any floating type; computed on its device.
        temperature: T, the published 0.05.

    Returns:
        0 to log(N - 1), in nats; 0 for fewer than two images, which have no neighbours.
    """
    n = len(probabilities)
    if n > MOST:
        chosen = torch.arange(MOST, device=probabilities.device) * n // MOST
        probabilities, n = probabilities[chosen], MOST
    if n < 2:
        return 0.0
    rows = F.normalize(probabilities.double(), dim=1)
    total = 0.0
    for start in range(0, n, ROWS):
        similar = rows[start : start + ROWS] @ rows.T / temperature
        similar.diagonal(start).fill_(-torch.inf)  # an image is no neighbour of its own
        total += float(entropy(similar.softmax(1)).sum())
    return total / n
