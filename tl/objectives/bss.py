"""Fine-tuning that suppresses what transfers badly: batch spectral shrinkage, BSS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tl.config import Keys, NonNegativeFloat, PositiveInt
from tl.objectives.global_batch import gathered
from tl.objectives.objective import share_of
from tl.objectives.supervised import Seen, Supervised


class BSS(Supervised):
    """Cross-entropy, and a penalty on the smallest singular values of a batch's features.

    Chen et al., "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe
    Transfer Learning", NeurIPS 2019: eta Σ σ² over the k smallest of the min(N, D) singular values
    of the matrix (N, D) of what goes into the head, for the N images of the global batch (of a
    micro-batch, with gradient accumulation), averaged over places where that is a map.
    """

    class Options(Keys):
        eta: NonNegativeFloat = 0.001
        """weight of the penalty"""
        k: PositiveInt = 1
        """how many of the smallest singular values it is on"""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.keep = (self.network.stages[-2].name,)

    def penalties(self, seen: Seen) -> dict[str, Tensor]:
        features = seen.stages[self.keep[0]]
        if features.dim() == 4:
            features = features.mean((2, 3))
        rows, weight = gathered(features.flatten(1), seen.batch, self.phase)
        penalty = self.options.eta * smallest(rows, weight.sum(), self.options.k)
        return {"bss": share_of(penalty, seen.batch)}


def smallest(rows: Tensor, count: Tensor, k: int) -> Tensor:
    """The sum of the squares of the ``k`` smallest singular values of ``rows`` (M, D).

    All but ``count`` (a scalar) rows are zeros and none of the matrix: they only add zeros to its
    singular values, which are left out.
    """
    with torch.autocast(rows.device.type, enabled=False):
        values = torch.linalg.svdvals(rows)  # the largest first
    rank = count.clamp(max=rows.shape[1])
    place = torch.arange(len(values), device=rows.device)
    return torch.where((place < rank) & (place >= rank - k), values, 0).square().sum()
