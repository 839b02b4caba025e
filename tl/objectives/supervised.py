"""Cross-entropy with labels: fine-tuning and training from scratch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.data.streams import Batch
from tl.objectives.objective import Objective, weighted_share


class Supervised(Objective):
    """Mean cross-entropy, with the phase's label smoothing (Szegedy et al., CVPR 2016).

    An auxiliary classifier adds its own cross-entropy times its weight. ``loss`` includes these;
    accuracy is that of the main classifier.
    """

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        self.network.expect(batch)
        logits, auxiliary = self.network.forward_with_aux(batch["image"], batch["start"])
        loss = self._cross_entropy(logits, batch)
        for weight, auxiliary_logits in auxiliary:
            loss = loss + weight * self._cross_entropy(auxiliary_logits, batch)
        correct = (logits.argmax(1) == batch["label"]) * batch["weight"]
        return {"loss": loss, "accuracy": correct.sum()}

    def _cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        # float32 at least: the log-sum-exp of half-precision logits loses too much.
        per_image = F.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)),
            batch["label"],
            reduction="none",
            label_smoothing=self.phase.label_smoothing,
        )
        return weighted_share(per_image, batch)
