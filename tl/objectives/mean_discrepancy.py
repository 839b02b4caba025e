"""Maximum mean discrepancy, MMD: how far two sets of rows are apart, by kernels of pairs of them.

Gretton et al., "A Kernel Two-Sample Test", JMLR 2012. All of it is over the rows of all processes,
in float64: a distance is a difference of large products, of which TF32 would leave three digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tl.config import Phase
from tl.objectives.adaptation import Domain
from tl.objectives.global_batch import gathered


def rows_of_both(domains: Sequence[Domain], phase: Phase) -> tuple[Tensor, ...]:
    """Features (M, D) and logits (M, C) of all processes, first of the source, then of the target.

    Called by all processes together. The other two, (M,), are which are of the source, and which
    of the target: 1, or else 0; both 0 for padding. All are float64.
    """
    rows, weights = [], []
    for domain in domains:
        both = torch.cat([domain.features, domain.logits], 1)
        values, weight = gathered(both, domain.batch, phase)
        rows.append(values.double())
        weights.append(weight.double())
    widths = [domains[0].features.shape[1], domains[0].logits.shape[1]]
    features, logits = torch.cat(rows).split(widths, 1)
    source = torch.cat([weights[0], torch.zeros_like(weights[1])])
    target = torch.cat([torch.zeros_like(weights[0]), weights[1]])
    return features, logits, source, target


def squared_distances(rows: Tensor) -> Tensor:
    """‖xᵢ - xⱼ‖² of all pairs, (M, M), of rows (M, D)."""
    rows = rows - rows.detach().mean(0)  # changes no distance, and makes what cancels small
    squares = rows.square().sum(1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0)


def bandwidth(distances: Tensor, weight: Tensor) -> Tensor:
    """The mean of ``distances`` (M, M) over pairs of different rows of weight 1, as a constant.

    Args:
        weight: (M,), 1, or 0 for rows that do not count.
    """
    distances, count = distances.detach(), weight.sum()
    return weight @ distances @ weight / (count * (count - 1)).clamp(min=1)


def gaussians(distances: Tensor, width: Tensor, kernels: int) -> Tensor:
    """Σ_k exp(-d / (2^k width)) of squared distances d, for ``kernels`` whole k around 0."""
    width = width.clamp(min=1e-30)  # of rows that are all alike it is 0
    scales = [2.0 ** (k - kernels // 2) for k in range(kernels)]
    return torch.stack([torch.exp(-distances / (scale * width)) for scale in scales]).sum(0)


def mean_discrepancy(kernel: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """MMD² of source and target rows, unbiased, so below 0 at times.

    The mean of the kernel over pairs of different rows of the source, plus that of the target,
    minus twice that over all pairs of one of each. Without two rows of either it is 0.

    Args:
        kernel: (M, M) of all pairs of rows.
        source, target: (M,), which rows they are: 1, or else 0.
    """
    same = torch.eye(len(kernel), dtype=torch.bool, device=kernel.device)
    others = kernel.masked_fill(same, 0)
    m, n = source.sum(), target.sum()
    within = source @ others @ source / (m * (m - 1)).clamp(min=1)
    within = within + target @ others @ target / (n * (n - 1)).clamp(min=1)
    between = source @ kernel @ target / (m * n).clamp(min=1)
    return torch.where((m > 1) & (n > 1), within - 2 * between, 0)
