"""Adaptation by features of larger norms, step by step: adaptive feature norm, AFN."""

from __future__ import annotations

import torch
from torch import Tensor

from tl.config import Keys, NonNegativeFloat
from tl.objectives.adaptation import Adaptation, Domain
from tl.objectives.objective import weighted_share


class AFN(Adaptation):
    """Cross-entropy on the source, and a pull on the norm of each image's features to be larger.

    Xu, Li, Yang and Lin, "Larger Norm More Transferable: An Adaptive Feature Norm Approach for
    Unsupervised Domain Adaptation", ICCV 2019, the stepwise one (SAFN): the mean over the source
    and that over the target of

        strength (‖f‖ - (‖f‖' + step))²

    with ‖f‖' the same norm as a constant: not that of a step before, as in the authors' code. So
    the value is strength step² in each domain whatever the features, and all that it does is in the
    gradient, -2 strength step along f / ‖f‖. The norms are logged, as ``source_norm`` and
    ``target_norm``.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 0.05
        """weight of the pull"""
        step: NonNegativeFloat = 1.0
        """by how much a norm is to be larger"""

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        share, norms = domains[0].features.new_zeros(()), []
        for domain in domains:
            norm = torch.linalg.vector_norm(domain.features, dim=1)
            distance = (norm - (norm.detach() + self.options.step)).square()
            share = share + weighted_share(self.options.strength * distance, domain.batch)
            mean = weighted_share(norm.detach(), domain.batch)
            norms.append(mean * domains[0].batch["global_count"])
        return {"afn": share}, dict(zip(("source_norm", "target_norm"), norms, strict=True))
