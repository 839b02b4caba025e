"""Domain-adversarial training: features that do not tell the domain, DANN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tl.config import Keys, NonNegativeFloat, PositiveInt
from tl.models.network import Network
from tl.objectives.adaptation import Adaptation, Domain, feature_width
from tl.objectives.domain_classifier import DomainClassifier, beside, domain_share
from tl.objectives.reversal import reversal_strength, reverse


class DANN(Adaptation):
    """Cross-entropy on the source, and a discriminator that the features are to deceive.

    Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016. With f (N, D), what
    goes into the head, and the discriminator d,

        1/2 (mean over the source of -log d(f) + mean over the target of -log(1 - d(f)))

    which d minimises; the network before the head gets its gradient reversed, times

        strength (2 / (1 + exp(-alpha progress)) - 1)

    The 1/2 is that of the implementations, which take the mean over both domains together. The
    discriminator is `DomainClassifier`. ``domain_accuracy`` is logged: 0.5 is a deceived one.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """what the reversed gradient is multiplied by at last"""
        alpha: NonNegativeFloat = 10.0
        """how fast it comes to that"""
        width: PositiveInt = 1024
        """of the discriminator's hidden layers"""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.adversary = DomainAdversary(self.network, self.options.width)

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        strength = reversal_strength(progress, self.options.alpha, high=self.options.strength)
        share, right = self.adversary(domains, strength)
        return {"dann": share}, {"domain_accuracy": right}


class DomainAdversary(nn.Module):
    """A discriminator of features."""

    def __init__(self, network: Network, width: int) -> None:
        super().__init__()
        self.classifier = beside(DomainClassifier(feature_width(network), width), network)

    def forward(self, domains: Sequence[Domain], strength: float) -> tuple[Tensor, Tensor]:
        """See `domain_share`; the features' gradient comes reversed, times ``strength``."""
        logits = [self.classifier(reverse(domain.features, strength)) for domain in domains]
        return domain_share(logits, domains)
