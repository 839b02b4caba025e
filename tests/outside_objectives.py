"""Objectives as somebody outside this project writes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tl.objectives import Objective
from tl.objectives.supervised import Supervised


class Float64(Supervised):
    """For networks that were built in float64: images come in float32."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        first = next(m for m in self.network.model.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))


class PullToStart(Supervised):
    """Cross-entropy and a pull to the starting point, with a learned strength: state of its own."""

    start: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        head = next(p for n, p in self.network.model.named_parameters() if p.requires_grad)
        self.register_buffer("start", head.detach().clone())
        self.strength = nn.Parameter(torch.rand(()))

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        output = super().forward(batch, progress)
        head = next(p for n, p in self.network.model.named_parameters() if p.requires_grad)
        distance = (head - self.start).square().sum()
        return {**output, "loss": output["loss"] + 0.01 * self.strength.square() * distance}


class Poisoned(Supervised):
    """The loss is a number, its gradient in the last step is none."""

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        output = super().forward(batch, progress)
        if progress >= 0.75:
            head = next(p for p in self.network.model.parameters() if p.requires_grad)
            # The square root of zero has an infinite slope, and zero times that is no number.
            output["loss"] = output["loss"] + (head * 0).sum().abs().sqrt()
        return output


class MovesFrozen(Objective):
    """Trains the head, and moves a frozen weight behind everybody's back."""

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        with torch.no_grad():
            next(iter(self.network.model.parameters())).add_(1e-6)
        return {"loss": self.network(batch["image"]).square().mean()}
