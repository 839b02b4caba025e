"""Cross-entropy with labels: fine-tuning and training from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tl.data.streams import Batch
from tl.objectives.cross_entropy import class_weights, cross_entropy
from tl.objectives.mixing import mixed
from tl.objectives.objective import Objective, weighted_share


@dataclass(frozen=True)
class Seen:
    """What the network made of a batch, for `Supervised.penalties`."""

    batch: Batch
    """as it went in: mixed, where images are"""
    targets: Tensor | None
    """(N, C), each image's shares of the labels, where images are mixed"""
    stages: dict[str, Tensor]
    """the outputs (N, …) of the stages that `Supervised.keep` names"""


class Supervised(Objective):
    """Mean cross-entropy, with the phase's label smoothing (Szegedy et al., CVPR 2016).

    An auxiliary classifier adds its own cross-entropy times its weight. ``loss`` includes these;
    accuracy is that of the main classifier. Images are mixed (`tl.objectives.mixing`), classes
    weighted and easy images counted less (`tl.objectives.cross_entropy`) as the phase's keys say;
    accuracy of mixed images is against the label with the larger share.

    Regularized fine-tuning derives from this: ``keep`` names stages whose outputs it wants to see,
    and `penalties` returns what is added to the loss, each part logged under its name.
    """

    keep: tuple[str, ...] = ()
    class_weights: Tensor | None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        weights = class_weights(self.phase.class_weights, self.given.class_counts)
        # It follows from the data: no checkpoint has it.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        self.network.expect(batch)
        targets = None
        if self.phase.mixes:
            classes = self.network.arguments["num_classes"]
            batch, targets = mixed(batch, self.phase.mixup, self.phase.cutmix, classes)
        logits, auxiliary, stages = self.network.forward_with_stages(
            batch["image"], batch["start"], self.keep
        )
        loss = self._cross_entropy(logits, batch, targets)
        for weight, auxiliary_logits in auxiliary:
            loss = loss + weight * self._cross_entropy(auxiliary_logits, batch, targets)
        correct = (logits.argmax(1) == batch["label"]) * batch["weight"]
        output = {"accuracy": correct.sum()}
        for name, share in self.penalties(Seen(batch, targets, stages)).items():
            loss = loss + share
            output[name] = share.detach() * batch["global_count"]
        return {"loss": loss, **output}

    def penalties(self, seen: Seen) -> dict[str, Tensor]:
        """What is added to the loss, by name: this share's parts (scalars) of global means."""
        return {}

    def _cross_entropy(self, logits: Tensor, batch: Batch, targets: Tensor | None) -> Tensor:
        # float32 at least: the log-sum-exp of half-precision logits loses too much.
        per_image = cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)),
            batch["label"] if targets is None else targets,
            smoothing=self.phase.label_smoothing,
            weights=self.class_weights,
            gamma=self.phase.focal,
        )
        return weighted_share(per_image, batch)
