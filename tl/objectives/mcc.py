"""Adaptation by making the target's predictions less confused: minimum class confusion, MCC."""

from __future__ import annotations

import torch
from torch import Tensor

from tl.config import Keys, NonNegativeFloat, PositiveFloat
from tl.objectives.adaptation import Adaptation, Domain
from tl.objectives.global_batch import gathered
from tl.objectives.objective import share_of


class MCC(Adaptation):
    """Cross-entropy on the source, and how much the target's images are of two classes at once.

    Jin, Wang, Long and Wang, "Minimum Class Confusion for Versatile Domain Adaptation", ECCV 2020.
    See `class_confusion`, of the target's logits in the global batch (of a micro-batch, with
    gradient accumulation), times ``strength``.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """weight of the confusion"""
        temperature: PositiveFloat = 2.5
        """what the logits are divided by"""

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        target = domains[1]
        rows, weight = gathered(target.logits, target.batch, self.phase)
        confusion = class_confusion(rows, weight, self.options.temperature)
        share = share_of(self.options.strength * confusion, target.batch)
        return {"mcc": share.to(target.logits.dtype)}, {}


def class_confusion(logits: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """The mean share of a class's weight that is confused with another one: 0 to 1 - 1 / C.

    With P = softmax(logits / temperature), (M, C), and the weights w = 1 + exp(-H(p)) of its rows,
    by which certain images count for more and which are constants to the gradient,

        A = P' diag(w) P,        1/C Σ_i Σ_{j ≠ i} A_ij / Σ_k A_ik

    The paper scales w to a mean of 1, which the division undoes.

    Args:
        logits: (M, C).
        weight: (M,), 1, or 0 for padding, which does not count; without any image it is 0.

    Returns:
        float64, as it is computed.
    """
    # float64: in TF32 the products of a GPU would have three digits.
    logs = torch.log_softmax(logits.double() / temperature, 1)
    p = logs.exp()
    certainty = 1 + (p * logs).sum(1).detach().exp()
    confusion = p.T @ (p * (certainty * weight)[:, None])
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    return (shares.sum() - shares.trace()) / logits.shape[1]
