"""Adaptation by the target's statistics alone: adaptive batch normalisation, AdaBN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tl.data.streams import Batch
from tl.errors import UserError
from tl.models.network import Network
from tl.objectives.objective import Stream
from tl.objectives.supervised import Supervised


class AdaBN(Supervised):
    """Cross-entropy on the source; BatchNorm goes by the target in all that is done with the model.

    Li, Wang, Shi, Liu and Hou, "Revisiting Batch Normalization For Practical Domain Adaptation",
    2016. Images of the source are normalised by their own batch's statistics, and move no others.
    Those of the target go through as well, without a gradient, and theirs are what BatchNorm
    gathers: with them the model is evaluated and saved. The paper takes them once, over all of the
    target, after training; here they are the running averages, of the network as it trains.

    It needs a BatchNorm that gathers statistics in this phase: in a stage that trains, with
    ``batch_norm`` train or sync. Those of frozen stages stay as they are.
    """

    streams: ClassVar[tuple[Stream, ...]] = ("source", "target")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if not gathering(self.network):
            raise UserError(
                f"objective=adabn: no BatchNorm of {self.network.architecture} gathers statistics "
                f"in phase {self.phase.name}, so there is nothing that it could adapt. Let a stage "
                "with BatchNorm train (train=…), with batch_norm=train or sync; or add one with "
                "model.bottleneck=256; or take a network that has BatchNorm"
            )

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        with statistics_untouched(gathering(self.network)):
            output = super().forward(batch, progress)
        target = batch["target"]
        self.network.expect(target)
        with torch.no_grad():
            self.network.forward_with_aux(target["image"], target["start"])
        return output


def gathering(network: Network) -> list[_BatchNorm]:
    """The BatchNorm layers that gather statistics in training, as `freeze` has set it up."""
    named = network.model.named_modules()
    layers = [m for n, m in named if isinstance(m, _BatchNorm) and n not in network.eval_modules]
    return [layer for layer in layers if layer.track_running_stats]


@contextlib.contextmanager
def statistics_untouched(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """A block in which what the layers gather goes into copies, which are then dropped.

    A momentum of 0 would not do: the batches would still be counted, which a cumulative average
    goes by, and 0 times a value that is not finite is not 0.
    """
    kept = [(layer, dict(layer.named_buffers(recurse=False))) for layer in layers]
    try:
        for layer, buffers in kept:
            for name, buffer in buffers.items():
                setattr(layer, name, buffer.clone())
        yield
    finally:
        for layer, buffers in kept:
            for name, buffer in buffers.items():
                setattr(layer, name, buffer)
