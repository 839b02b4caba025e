"""Domain-adversarial training conditioned on what the network predicts: CDAN and CDAN+E."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tl.config import Keys, NonNegativeFloat, Phase, PositiveInt
from tl.models.network import Network
from tl.objectives.adaptation import Adaptation, Domain, feature_width
from tl.objectives.domain_classifier import DomainClassifier, beside, domain_share
from tl.objectives.global_batch import gathered
from tl.objectives.reversal import reversal_strength, reverse

WIDE = 4096
"""the widest outer product that a discriminator is given as it is, by the paper"""


class CDAN(Adaptation):
    """Cross-entropy on the source, and a discriminator of features and predictions together.

    Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018. As `DANN`, but what the
    discriminator sees of an image, with its features f (D,) and probabilities g (C,), is the outer
    product of f and g (D C,); or, where D C > 4096, its randomised form (d,)

        (R_f f) * (R_g g) / sqrt(d)

    element by element, whose inner products are those of the outer product in expectation.
    With ``entropy`` (CDAN+E) an image's term has the weight

        w = 1 + exp(-H(g)),  over the mean of w over its domain in the global batch

    so images count by how certain their prediction is. (With gradient accumulation the mean is
    that of a micro-batch.) As in the implementations, g and w are constants: only f is adapted.
    The authors' code for CDAN+E lets a gradient into w, by a reversed entropy; this does not.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """what the reversed gradient is multiplied by at last"""
        alpha: NonNegativeFloat = 10.0
        """how fast it comes to that"""
        width: PositiveInt = 1024
        """of the discriminator's hidden layers"""
        entropy: bool = False
        """weight images by how certain their prediction is: CDAN+E"""
        randomized: bool | None = None
        """random projections in place of the outer product; null: where that is above 4096 wide"""
        randomized_width: PositiveInt = 1024
        """how wide these are"""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.adversary = ConditionalAdversary(self.network, self.phase, self.options)

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        strength = reversal_strength(progress, self.options.alpha, high=self.options.strength)
        share, right = self.adversary(domains, strength)
        return {"cdan": share}, {"domain_accuracy": right}


class ConditionalAdversary(nn.Module):
    """A discriminator of features and predictions."""

    def __init__(self, network: Network, phase: Phase, options: CDAN.Options) -> None:
        super().__init__()
        self.phase, self.entropy = phase, options.entropy
        width, classes = feature_width(network), network.arguments["num_classes"]
        randomized = options.randomized
        if randomized is None:
            randomized = width * classes > WIDE
        product = (
            RandomProduct(width, classes, options.randomized_width)
            if randomized
            else OuterProduct(width, classes)
        )
        self.product = beside(product, network)
        self.classifier = beside(DomainClassifier(product.width, options.width), network)

    def forward(self, domains: Sequence[Domain], strength: float) -> tuple[Tensor, Tensor]:
        """See `domain_share`; the features' gradient comes reversed, times ``strength``."""
        logits = []
        for domain in domains:
            seen = self.product(domain.features, domain.logits.detach().softmax(1))
            logits.append(self.classifier(reverse(seen, strength)))
        factors = [certainty(domain, self.phase) for domain in domains] if self.entropy else None
        return domain_share(logits, domains, factors)


class OuterProduct(nn.Module):
    """(N, D) and (N, C) to (N, D C)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.width = features * classes

    def forward(self, f: Tensor, g: Tensor) -> Tensor:
        return (f[:, :, None] * g[:, None, :]).flatten(1)


class RandomProduct(nn.Module):
    """(N, D) and (N, C) to (N, width): see `CDAN`.

    The matrices are signs, which are symmetric and of unit variance, as the paper asks for. It has
    Gaussian ones; these would differ in their last bits from one kind of CPU to another. They
    follow from torch's seed, which is the run's and the phase's: no checkpoint has them.
    """

    of_features: Tensor
    of_classes: Tensor

    def __init__(self, features: int, classes: int, width: int) -> None:
        super().__init__()
        self.width = width
        # A generator of its own: they do not depend on what is drawn before them.
        draw = torch.Generator().manual_seed(torch.initial_seed())
        for name, rows in (("of_features", features), ("of_classes", classes)):
            signs = 2.0 * torch.randint(0, 2, (rows, width), generator=draw) - 1
            self.register_buffer(name, signs, persistent=False)

    def forward(self, f: Tensor, g: Tensor) -> Tensor:
        return (f @ self.of_features) * (g @ self.of_classes) / math.sqrt(self.width)


def certainty(domain: Domain, phase: Phase) -> Tensor:
    """CDAN+E's weights (N,) of a domain's images: constants, of mean 1 over the global batch.

    Called by all processes together.
    """
    logs = F.log_softmax(domain.logits.detach(), 1)
    weight = 1 + (logs.exp() * logs).sum(1).exp()
    everyone, counts = gathered(weight[:, None], domain.batch, phase)
    # At least 1 each, so with no image at all this is 0 / 1.
    return weight * (counts.sum() / everyone.sum().clamp(min=1))
