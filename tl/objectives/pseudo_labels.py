"""Labels for images that have none, by the nearest of the classes' centroids."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4096
"""that are on the device at a time, in float64"""

Total = Callable[[Tensor], Tensor]


def nearest_centroids(
    features: Tensor, probabilities: Tensor, device: torch.device, total: Total
) -> Tensor:
    """The label of each image: of the class whose centroid its features are nearest to.

    As SHOT has it (Liang, Hu and Feng, ICML 2020). First the centroids are means over all images,
    weighted by the probabilities that the network gives; then over the images that are the nearest
    to each of these, and those are what labels go by:

        c_k = Σ_i p_ik f_i / Σ_i p_ik,    ŷ_i = argmax_k cos(f_i, c_k)
        c_k = Σ_i 1(ŷ_i = k) f_i / Σ_i 1(ŷ_i = k),    ŷ_i = argmax_k cos(f_i, c_k)

    A class that no image is nearest to has no second centroid, so no image gets its label. Of
    several classes as near it is the first. In float64.

    Args:
        features: (N, D), this process's share of all images; may be none, of width D.
        probabilities: (N, C), of the same.
        device: where it is computed, by blocks of `ROWS` images.
        total: the sum over all processes of a tensor that is there.

    Returns:
        int64 (N,), on the device of ``features``.
    """
    centroids = _centroids(features, probabilities, device, total)
    labels = _nearest(features, centroids)
    alone = F.one_hot(labels, probabilities.shape[1])
    centroids = _centroids(features, alone, device, total)
    return _nearest(features, centroids)


def _centroids(features: Tensor, weights: Tensor, device: torch.device, total: Total) -> Tensor:
    """(C, D) weighted means over all processes' images; NaN of a class without weight."""
    width, classes = features.shape[1], weights.shape[1]
    sums = torch.zeros(classes, width + 1, dtype=torch.float64, device=device)
    for rows, shares in zip(_blocks(features), _blocks(weights), strict=True):
        f = rows.to(device, torch.float64)
        w = shares.to(device, torch.float64)
        sums[:, :-1] += w.T @ f
        sums[:, -1] += w.sum(0)
    sums = total(sums)
    return sums[:, :-1] / sums[:, -1:]


def _nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """(N,) the class whose centroid has the smallest angle to each row."""
    directions = F.normalize(centroids, dim=1)
    there = directions.isfinite().all(1)
    found = [features.new_zeros(0, dtype=torch.int64)]
    for rows in _blocks(features):
        likeness = rows.to(directions) @ directions.nan_to_num().T  # of a row's length it is free
        likeness[:, ~there] = -torch.inf
        found.append(likeness.argmax(1).to(features.device))
    return torch.cat(found)


def _blocks(rows: Tensor) -> Iterator[Tensor]:
    yield from (rows[i : i + ROWS] for i in range(0, len(rows), ROWS))
