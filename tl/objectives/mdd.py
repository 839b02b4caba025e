"""Adversarial training between two classifiers: margin disparity discrepancy, MDD."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tl.config import Keys, NonNegativeFloat, PositiveInt
from tl.objectives.adaptation import Adaptation, Domain, feature_width
from tl.objectives.domain_classifier import beside
from tl.objectives.objective import weighted_share
from tl.objectives.reversal import reversal_strength, reverse


class MDD(Adaptation):
    """Cross-entropy on the source, and a second classifier that differs on the target alone.

    Zhang et al., "Bridging Theory and Algorithm for Domain Adaptation", ICML 2019. With the
    head's prediction y = argmax (of which no gradient comes) and p the probabilities (N, C) that
    the adversarial classifier has from the same features,

        gamma mean over the source of -log p_y + mean over the target of -log(1 - p_y)

    which that classifier minimises: it agrees with the head on the source, by a margin of
    log(gamma), and not on the target. The network before the head gets the gradient reversed, times

        strength (2 / (1 + exp(-alpha progress)) - 1)

    The adversarial classifier is D, ``width``, C with a ReLU, as in the paper but for its dropout;
    the head is the network's own, where the paper has another of that kind.
    """

    class Options(Keys):
        gamma: NonNegativeFloat = 4.0
        """how much agreement on the source is worth: the exponential of the margin"""
        strength: NonNegativeFloat = 0.1
        """what the reversed gradient is multiplied by at last"""
        # Of the authors' code: 1 for every 1,000 of 100,000 steps.
        alpha: NonNegativeFloat = 100.0
        """how fast it comes to that"""
        width: PositiveInt = 1024
        """of the adversarial classifier's hidden layer"""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        width, classes = self.options.width, self.network.arguments["num_classes"]
        self.adversary = beside(
            nn.Sequential(
                nn.Linear(feature_width(self.network), width), nn.ReLU(), nn.Linear(width, classes)
            ),
            self.network,
        )

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        strength = reversal_strength(progress, self.options.alpha, high=self.options.strength)
        (source, agreed), (target, differed) = [
            (self.adversary(reverse(domain.features, strength)), domain.logits.argmax(1))
            for domain in domains
        ]
        on_source = self.options.gamma * F.cross_entropy(source, agreed, reduction="none")
        share = weighted_share(on_source, domains[0].batch)
        share = share + weighted_share(minus_log_of_others(target, differed), domains[1].batch)
        return {"mdd": share}, {}


def minus_log_of_others(logits: Tensor, classes: Tensor) -> Tensor:
    """``-log(1 - p)`` (N,) of the probability p that logits (N, C) give to one class (N,) each.

    As a difference of two log-sum-exps: exact where p is nearly 1, and its gradient finite there.
    """
    chosen = F.one_hot(classes, logits.shape[1]).bool()
    others = logits.masked_fill(chosen, -torch.inf)
    return logits.logsumexp(1) - others.logsumexp(1)
