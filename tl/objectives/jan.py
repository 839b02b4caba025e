"""Adaptation by the mean discrepancy of features and predictions together: JAN, with JMMD."""

from __future__ import annotations

import torch
from torch import Tensor

from tl.config import Keys, NonNegativeFloat, PositiveFloat, PositiveInt
from tl.objectives.adaptation import Adaptation, Domain
from tl.objectives.mean_discrepancy import (
    bandwidth,
    gaussians,
    mean_discrepancy,
    rows_of_both,
    squared_distances,
)
from tl.objectives.objective import share_of
from tl.objectives.reversal import reversal_strength


class JAN(Adaptation):
    """Cross-entropy on the source, and the MMD² of the joint distribution of two layers.

    Long, Zhu, Wang and Jordan, "Deep Transfer Learning with Joint Adaptation Networks", ICML 2017:

        strength (2 / (1 + exp(-alpha progress)) - 1) MMD²

    with the product of a kernel of the features f and one of the probabilities p of an image,

        k = Σ_k exp(-‖f - f'‖² / (2^k m)) · exp(-‖p - p'‖² / width),        k = -2, …, 2

    m being the mean squared distance of the features, see `DAN`; the second kernel is the authors'.
    MMD² is the unbiased estimate over all pairs of the global batch (of a micro-batch, with
    gradient accumulation). The paper's adversarial variant, JAN-A, is left out.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """weight of the discrepancy at last"""
        alpha: NonNegativeFloat = 10.0
        """how fast it comes to that"""
        kernels: PositiveInt = 5
        """how many Gaussians of the features, each twice as wide as the one before"""
        width: PositiveFloat = 1.68
        """of the Gaussian of the probabilities, whose squared distance is at most 2"""

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features, logits, source, target = rows_of_both(domains, self.phase)
        distances = squared_distances(features)
        kernel = gaussians(distances, bandwidth(distances, source + target), self.options.kernels)
        kernel = kernel * torch.exp(-squared_distances(logits.softmax(1)) / self.options.width)
        strength = reversal_strength(progress, self.options.alpha, high=self.options.strength)
        share = share_of(strength * mean_discrepancy(kernel, source, target), domains[0].batch)
        return {"jan": share.to(domains[0].features.dtype)}, {}
