"""The discriminator of adversarial adaptation: is an image of the source, or of the target?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tl.models.network import Network
from tl.objectives.adaptation import Domain
from tl.objectives.objective import weighted_share


class DomainClassifier(nn.Sequential):
    """Vectors (N, D) to logits (N,), positive for the source: two hidden layers with ReLU.

    Those of Ganin et al., JMLR 2016 (D, 1024, 1024, 1). The implementations of CDAN have dropout
    behind each hidden layer, those of the library that most take BatchNorm before each ReLU. Here
    is neither: by BatchNorm what an image gets would depend on which others its process has, and
    with both domains in a batch of its own it would give the domain away. Layers start as
    PyTorch's do. They train with the network's optimizer, at the head's rate.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
            nn.Flatten(0),
        )


def beside(module: nn.Module, network: Network) -> nn.Module:
    """``module``, where the network is, in its precision but float32 at least."""
    like = next(network.model.parameters())
    return module.to(like.device, torch.promote_types(like.dtype, torch.float32))


def domain_share(
    logits: Sequence[Tensor], domains: Sequence[Domain], factors: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """How badly a discriminator tells source from target, and how often it is right.

    1/2 (mean over the source of -log d + mean over the target of -log(1 - d)), d = sigmoid(logit).

    Args:
        logits: (N,) of the source, and of the target.
        domains: source and target.
        factors: (N,) of each, what an image's term is worth; by default 1.

    Returns:
        This share's part of that loss; and of the discriminator's accuracy, the mean of those on
        either domain, a sum as `Adaptation.terms` returns it: its mean over source images is it.
    """
    source, _ = domains
    parts, right = [], []
    for i, (score, domain) in enumerate(zip(logits, domains, strict=True)):
        truth = torch.full_like(score, 1.0 - i)
        losses = F.binary_cross_entropy_with_logits(score, truth, reduction="none")
        if factors is not None:
            losses = losses * factors[i]
        parts.append(weighted_share(losses, domain.batch) / 2)
        hits = ((score > 0) == (truth > 0)).to(score.dtype)
        right.append(weighted_share(hits, domain.batch) / 2 * source.batch["global_count"])
    return parts[0] + parts[1], (right[0] + right[1]).detach()
