"""Fine-tuning that keeps the pretrained network's feature maps: DELTA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tl.config import Keys, NonNegativeFloat
from tl.errors import unknown
from tl.models.network import head_parameters
from tl.objectives.objective import share_of, weighted_share
from tl.objectives.supervised import Seen, Supervised


class Delta(Supervised):
    """Cross-entropy, and a penalty on how far feature maps move from the pretrained network's.

    Li et al., "DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional
    Networks", ICLR 2019. For an image x

        alpha / 2 Σ_s Σ_j ||F_sj(x) - F0_sj(x)||² / places_s + beta / 2 ||v||²

    over the stages s and their channels j. F are the outputs (C, H, W) of the network's stages, F0
    those of the pretrained one in eval mode for the same view of the image, places_s is H W, and v
    are the parameters of the heads that train. The mean over images is taken. Every channel has the
    same weight: this is the paper's DELTA without attention, whose weights, from how much each
    channel's absence costs, take an evaluation of the data for each of thousands of channels.
    An output that is no map of 4 dimensions is (N, tokens, C) or (N, C), with tokens for places.
    """

    class Options(Keys):
        alpha: NonNegativeFloat = 0.01
        """pull of the feature maps to the pretrained network's"""
        beta: NonNegativeFloat = 0.01
        """pull of the head to zero"""
        stages: list[str] | None = None
        """stages whose outputs are kept near; null: all but the first and the head"""

    needs = frozenset({"images", "pretrained"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        names = [stage.name for stage in self.network.stages[:-1]]
        chosen = self.options.stages
        for name in chosen or []:
            if name not in names:
                raise unknown("stage", name, names, "objective_options.stages")
        self.keep = tuple(names[1:] or names) if chosen is None else tuple(chosen)
        heads = head_parameters(self.network)
        trained = self.network.model.named_parameters()
        self._head = [p for name, p in trained if name in heads and p.requires_grad]

    def penalties(self, seen: Seen) -> dict[str, Tensor]:
        assert self.given.pretrained is not None
        with torch.no_grad():
            _, _, before = self.given.pretrained.forward_with_stages(
                seen.batch["image"], keep=self.keep
            )
        moved = [distances(seen.stages[name], before[name]) for name in self.keep]
        share = weighted_share(self.options.alpha / 2 * torch.stack(moved).sum(0), seen.batch)
        for parameter in self._head:
            share = share + share_of(self.options.beta / 2 * parameter.square().sum(), seen.batch)
        return {"delta": share}


def distances(now: Tensor, before: Tensor) -> Tensor:
    """The squared distance (N,) of two outputs (N, …) of a stage, over its places."""
    shape = now.shape
    places = shape[2] * shape[3] if len(shape) == 4 else shape[1] if len(shape) == 3 else 1
    precise = torch.promote_types(now.dtype, torch.float32)
    return (now.to(precise) - before.to(precise)).square().flatten(1).sum(1) / places
