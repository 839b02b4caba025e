"""Adaptation that makes the covariances of two domains equal: Deep CORAL."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tl.config import Keys, NonNegativeFloat
from tl.objectives.adaptation import Adaptation, Domain
from tl.objectives.global_batch import gathered
from tl.objectives.objective import share_of


class Coral(Adaptation):
    """Cross-entropy on the source, and the distance of both domains' covariances.

    Sun and Saenko, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation", ECCV Workshops
    2016:

        strength ‖C_S - C_T‖² / (4 d²)        (squared Frobenius norm)

    C are the covariances (d, d), over N - 1, of a domain's rows (N, d) in the global batch (of a
    micro-batch, with gradient accumulation), in float64. The paper has it on the logits, d = C, and
    chooses the strength so that both losses are about as large at the end of training.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """weight of the distance"""
        layer: Literal["logits", "features"] = "logits"
        """what the covariances are of; `features`: what goes into the head. Over 4 d² theirs are
        small, and ask for a larger strength"""

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rows = [getattr(domain, self.options.layer) for domain in domains]
        both = [gathered(r, d.batch, self.phase) for r, d in zip(rows, domains, strict=True)]
        distance = covariance_distance(*both[0], *both[1])
        share = share_of(self.options.strength * distance, domains[0].batch)
        return {"coral": share.to(rows[0].dtype)}, {}


def covariance_distance(
    source: Tensor, source_weight: Tensor, target: Tensor, target_weight: Tensor
) -> Tensor:
    """‖C_S - C_T‖² / (4 d²) of rows (M, d) of weight (M,) 1, or 0 for padding; float64.

    Without two rows of either there is no covariance, and it is 0.
    """
    difference = covariance(source, source_weight) - covariance(target, target_weight)
    distance = difference.square().sum() / (4 * source.shape[1] ** 2)
    return torch.where((source_weight.sum() > 1) & (target_weight.sum() > 1), distance, 0)


def covariance(rows: Tensor, weight: Tensor) -> Tensor:
    """The unbiased covariance (d, d), float64, of rows (M, d); those of weight (M,) 0 are none."""
    # float64: TF32 would leave three digits of these products, whose difference is looked at.
    rows, weight = rows.double(), weight.double()[:, None]
    count = weight.sum()
    centred = (rows - (weight * rows).sum(0) / count.clamp(min=1)) * weight
    return centred.T @ centred / (count - 1).clamp(min=1)
