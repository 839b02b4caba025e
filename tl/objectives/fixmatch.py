"""Adaptation by self-training: confident predictions of one view are the labels of another one."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tl.config import Fraction, Keys, NonNegativeFloat
from tl.objectives.adaptation import Adaptation, Domain
from tl.objectives.objective import Stream, weighted_share


class FixMatch(Adaptation):
    """Cross-entropy on the source, and on the target where the network is sure of what it sees.

    Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang and Raffel, "FixMatch: Simplifying
    Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020; the images without
    labels are those of another domain here. With q the prediction for an image of the target as the
    phase augments it (a constant to the gradient) and p that for the same image in a strong
    augmentation, added is

        strength x mean over the target of 1(max q >= threshold) (-log p(argmax q))

    An image below the threshold is part of the mean, as 0. ``confident`` is the share of those
    above it. The paper has 7 images without a label for each with one, here there are as many; its
    strong augmentations are RandAugment and CTAugment with Cutout, here it is TrivialAugment.
    """

    streams: ClassVar[tuple[Stream, ...]] = ("source", "target", "strong")

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """weight of the target's cross-entropy"""
        threshold: Fraction = 0.95
        """probability from which on a prediction is taken for a label"""

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weak, strong = domains[1:]
        probability, label = weak.logits.detach().softmax(1).max(1)
        sure = (probability >= self.options.threshold).to(strong.logits.dtype)
        losses = sure * F.cross_entropy(strong.logits, label, reduction="none")
        share = weighted_share(self.options.strength * losses, strong.batch)
        return {"self_training": share}, {"confident": (sure * weak.batch["weight"]).sum()}
