"""Fine-tuning that keeps what the pretrained head says: learning without forgetting, LwF."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.config import Keys, NonNegativeFloat, PositiveFloat
from tl.objectives.objective import weighted_share
from tl.objectives.supervised import Seen, Supervised


class LwF(Supervised):
    """Cross-entropy, and a distillation from the pretrained network to its head on the new body.

    Li and Hoiem, "Learning without Forgetting", ECCV 2016:

        CE(head(f(x)), y) - strength Σ_s softmax(z0 / T)_s log softmax(z / T)_s

    z0 are the pretrained network's logits of its own classes, in eval mode for the same view of the
    image (the paper records them once, without augmentation), z those of the source head on the
    network that trains. The source head trains along, from the pretrained one anew in each phase,
    and is not part of the model that is saved.
    """

    class Options(Keys):
        strength: NonNegativeFloat = 1.0
        """weight of the distillation"""
        temperature: PositiveFloat = 2.0
        """T, which softens both"""

    needs = frozenset({"images", "pretrained", "source_head"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.keep = (self.network.stages[-2].name,)
        assert self.given.source_head is not None
        self.source_head = copy.deepcopy(self.given.source_head).trained_with(self.network)

    def penalties(self, seen: Seen) -> dict[str, Tensor]:
        pretrained, old_head = self.given.pretrained, self.given.source_head
        assert pretrained is not None
        assert old_head is not None
        with torch.no_grad():
            body = len(pretrained.stages) - 1
            before = old_head(pretrained.features(seen.batch["image"], body))
        now = self.source_head(seen.stages[self.keep[0]])
        precise = torch.promote_types(now.dtype, torch.float32)
        soft = F.softmax(before.to(precise) / self.options.temperature, 1)
        losses = F.cross_entropy(now.to(precise) / self.options.temperature, soft, reduction="none")
        return {"lwf": weighted_share(self.options.strength * losses, seen.batch)}
