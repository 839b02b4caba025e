"""Adaptation without the source's data: information maximisation and pseudo-labels, SHOT."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.config import Keys, NonNegativeFloat
from tl.data.streams import Batch
from tl.errors import UserError
from tl.models.network import head_parameters
from tl.objectives.global_batch import gathered
from tl.objectives.objective import (
    Need,
    Objective,
    Predictions,
    Stream,
    share_of,
    weighted_share,
)
from tl.objectives.pseudo_labels import nearest_centroids


class SHOT(Objective):
    """Make what a trained model says of the target certain and diverse, its head as it was.

    Liang, Hu and Feng, "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for
    Unsupervised Domain Adaptation", ICML 2020. With the predictions p_i, entropy H and the
    pseudo-labels ŷ_i,

        strength (1/N Σ_i H(p_i) - H(1/N Σ_i p_i)) + beta/N Σ_i (-log p_i(ŷ_i))

    over the global batch (the mean prediction of a micro-batch, with gradient accumulation).
    Pseudo-labels are by the nearest centroid over all of the target, see `pseudo_labels`, computed
    before each epoch and part of the checkpoint. An auxiliary classifier has a term of its own, by
    its weight.

    The head is what the source has left of itself, and has to be frozen: ``train=freeze_head``, or
    any part of the network before it. The paper trains the source's model with label smoothing 0.1
    and with weight normalisation in the head, which is left out here; centroids are of features as
    they are, as in its formula (its code scales them to length 1, with a 1 beside them).
    """

    streams: ClassVar[tuple[Stream, ...]] = ("target",)
    needs: ClassVar[frozenset[Need]] = frozenset({"target_predictions"})

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """weight of information maximisation"""
        beta: NonNegativeFloat = 0.3
        """weight of the cross-entropy with pseudo-labels"""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        head = head_parameters(self.network)
        if any(p.requires_grad for name, p in self.network.named_weights() if name in head):
            raise UserError(
                f"objective=shot leaves the head as the source has trained it, and train="
                f"{self.phase.train} trains it: give train=freeze_head, all but the head, or a "
                "part before it, such as train=regex(bottleneck)"
            )
        # Of all images, int64 (N,), -1 of one that cannot be read. No buffer: DDP would send it at
        # each step.
        self.labels: Tensor | None = None

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        self.network.expect(batch)
        logits, auxiliary = self.network.forward_with_aux(batch["image"], batch["start"])
        shares = self._shares(logits, batch)
        loss = torch.stack(list(shares.values())).sum()
        for weight, auxiliary_logits in auxiliary:
            for share in self._shares(auxiliary_logits, batch).values():
                loss = loss + weight * share
        logged = {name: share.detach() * batch["global_count"] for name, share in shares.items()}
        return {"loss": loss, **logged}

    @torch.compiler.disable  # the labels are others after each epoch
    def _shares(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """This share's parts (scalars) of what the loss is made of."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            maximised = self._information(logits, batch)
            assert self.labels is not None, "computed before the first step"
            labels = self.labels[batch["id"]]
            losses = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
            losses = torch.where(labels >= 0, losses, 0)
            return {
                "im": self.options.strength * maximised,
                "pseudo_labels": weighted_share(self.options.beta * losses, batch),
            }

    def _information(self, logits: Tensor, batch: Batch) -> Tensor:
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        entropy = weighted_share(-(p * log_p).sum(1), batch)
        rows, weight = gathered(p, batch, self.phase)
        mean = rows.sum(0) / weight.sum().clamp(min=1)
        # At 0 the slope of x log x is infinite.
        diversity = -(mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()
        return (entropy - share_of(diversity, batch)).to(logits.dtype)

    def take_predictions(self, seen: Predictions, epoch: int) -> None:
        found = nearest_centroids(seen.features, seen.probabilities, seen.device, seen.total)
        labels = torch.zeros(seen.images, dtype=torch.int64, device=seen.device)
        labels[seen.id.to(seen.device)] = found.to(seen.device) + 1
        self.labels = seen.total(labels) - 1
        self.predictions_of = epoch

    def own_state(self) -> dict[str, Tensor]:
        state = super().own_state()
        if self.labels is not None:
            state |= {"labels": self.labels, "predictions_of": torch.tensor(self.predictions_of)}
        return state

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        rest = dict(state)
        if "labels" in rest:
            device = next(self.network.parameters()).device
            self.labels = rest.pop("labels").to(device)
            self.predictions_of = int(rest.pop("predictions_of"))
        super().load_own_state(rest)
