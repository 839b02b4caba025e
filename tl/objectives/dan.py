"""Adaptation by the mean discrepancy of features and of logits: DAN, with MK-MMD."""

from __future__ import annotations

from torch import Tensor

from tl.config import Keys, NonNegativeFloat, PositiveInt
from tl.objectives.adaptation import Adaptation, Domain
from tl.objectives.mean_discrepancy import (
    bandwidth,
    gaussians,
    mean_discrepancy,
    rows_of_both,
    squared_distances,
)
from tl.objectives.objective import share_of


class DAN(Adaptation):
    """Cross-entropy on the source, and the multi-kernel MMD² of both domains, layer by layer.

    Long, Cao, Wang and Jordan, "Learning Transferable Features with Deep Adaptation Networks",
    ICML 2015:

        strength (MMD²(features) + MMD²(logits)),
        k(x, y) = Σ_k exp(-‖x - y‖² / (2^k m)),        k = -2, …, 2

    m is the mean squared distance of two rows of that layer, of both domains together, as in the
    authors' later code (the paper's is the median, and its kernels are weighted by a quadratic
    program); it is a constant to the gradient. MMD² is the unbiased estimate over all pairs of the
    global batch (of a micro-batch, with gradient accumulation), so it may be below 0. The paper's
    is linear in the number of images: it looks at a few of the pairs, and at others on any order.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """weight of the discrepancies"""
        kernels: PositiveInt = 5
        """how many Gaussians, each twice as wide as the one before, around the mean distance"""

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features, logits, source, target = rows_of_both(domains, self.phase)
        total = features.new_zeros(())
        for rows in (features, logits):
            distances = squared_distances(rows)
            width = bandwidth(distances, source + target)
            kernel = gaussians(distances, width, self.options.kernels)
            total = total + mean_discrepancy(kernel, source, target)
        share = share_of(self.options.strength * total, domains[0].batch)
        return {"dan": share.to(domains[0].features.dtype)}, {}
