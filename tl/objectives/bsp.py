"""Adversarial adaptation that keeps features discriminable: batch spectral penalization, BSP."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tl.config import NonNegativeFloat, PositiveInt
from tl.objectives.adaptation import Adaptation, Domain
from tl.objectives.cdan import CDAN, ConditionalAdversary
from tl.objectives.dann import DomainAdversary
from tl.objectives.global_batch import gathered
from tl.objectives.objective import share_of
from tl.objectives.reversal import reversal_strength


class BSP(Adaptation):
    """`CDAN` or `DANN`, and a penalty on the largest singular values of each domain's features.

    Chen et al., "Transferability vs. Discriminability: Batch Spectral Penalization for Adversarial
    Domain Adaptation", ICML 2019:

        beta (Σ σ² over the k largest of the source + the same of the target)

    σ are the singular values of the matrix (N, D) of what goes into the head, for the N images of
    a domain in the global batch (of a micro-batch, with gradient accumulation). A sum of squares
    grows with N: beta is that for the paper's 36 images.
    """

    class Options(CDAN.Options):
        entropy: bool = True
        """CDAN+E, as in the authors' code; of CDAN, as are the two below"""
        adversary: Literal["cdan", "dann"] = "cdan"
        """what it is added to"""
        beta: NonNegativeFloat = 0.0001
        """weight of the penalty"""
        k: PositiveInt = 1
        """how many of the largest singular values it is on"""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.adversary = (
            ConditionalAdversary(self.network, self.phase, self.options)
            if self.options.adversary == "cdan"
            else DomainAdversary(self.network, self.options.width)
        )

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        strength = reversal_strength(progress, self.options.alpha, high=self.options.strength)
        share, right = self.adversary(domains, strength)
        penalties = []
        for domain in domains:
            rows, _ = gathered(domain.features, domain.batch, self.phase)
            penalty = self.options.beta * largest(rows, self.options.k)
            penalties.append(share_of(penalty, domain.batch))
        shares = {self.options.adversary: share, "bsp": penalties[0] + penalties[1]}
        return shares, {"domain_accuracy": right}


def largest(rows: Tensor, k: int) -> Tensor:
    """The sum of the squares of the ``k`` largest singular values of ``rows`` (M, D).

    Rows of zeros, which are none of the matrix, change none of them.
    """
    return torch.linalg.svdvals(rows)[:k].square().sum()
