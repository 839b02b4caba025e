"""Conditional adversarial adaptation with less confused predictions: CDAN + MCC."""

from __future__ import annotations

from torch import Tensor

from tl.config import NonNegativeFloat, PositiveFloat
from tl.objectives.adaptation import Domain
from tl.objectives.cdan import CDAN
from tl.objectives.global_batch import gathered
from tl.objectives.mcc import class_confusion
from tl.objectives.objective import share_of


class CDANMCC(CDAN):
    """`CDAN`, and ``mcc`` times the class confusion of the target that `MCC` has.

    Jin, Wang, Long and Wang, "Minimum Class Confusion for Versatile Domain Adaptation", ECCV 2020:
    their MCC as a regulariser of another method.
    """

    class Options(CDAN.Options):
        mcc: NonNegativeFloat = 1.0
        """weight of the class confusion"""
        temperature: PositiveFloat = 2.5
        """what the logits are divided by for it"""

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        shares, sums = super().terms(domains, progress)
        target = domains[1]
        rows, weight = gathered(target.logits, target.batch, self.phase)
        confusion = class_confusion(rows, weight, self.options.temperature)
        share = share_of(self.options.mcc * confusion, target.batch)
        return shares | {"mcc": share.to(target.logits.dtype)}, sums
