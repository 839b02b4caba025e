"""Fine-tuning that trains the pretrained head as well: Co-Tuning."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.config import Keys, NonNegativeFloat
from tl.objectives.objective import weighted_share
from tl.objectives.supervised import Seen, Supervised


class CoTuning(Supervised):
    """Cross-entropy, and one of the pretrained head with what its classes say of the label.

    You et al., "Co-Tuning for Transfer Learning", NeurIPS 2020:

        CE(head(f(x)), y) - strength Σ_s p(s | y) log softmax(source_head(f(x)))_s

    p(s | y), the relationship, is the mean over the training images of class y of the pretrained
    network's probabilities of its own classes s (the paper's direct approach), over the view that
    validation has; it is computed once, before training. The paper first calibrates these
    probabilities on the source's validation data; that is left out, as a run has none. The source
    head trains along, from the pretrained one anew in each phase, and is not part of the model that
    is saved. Of a mixed image p is mixed as the labels are.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 2.3
        """weight of the source head's cross-entropy"""

    needs = frozenset({"pretrained", "source_head", "relationship"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.keep = (self.network.stages[-2].name,)
        assert self.given.source_head is not None
        self.source_head = copy.deepcopy(self.given.source_head).trained_with(self.network)

    def penalties(self, seen: Seen) -> dict[str, Tensor]:
        relationship = self.given.relationship
        assert relationship is not None, "it is computed before the phase"
        logits = self.source_head(seen.stages[self.keep[0]])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        relationship = relationship.to(logits.dtype)
        if seen.targets is None:
            expected = relationship[seen.batch["label"]]
        else:
            expected = seen.targets.to(logits.dtype) @ relationship
        losses = F.cross_entropy(logits, expected, reduction="none")
        return {"co_tuning": weighted_share(self.options.strength * losses, seen.batch)}
