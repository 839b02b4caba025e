"""What every objective is: a module that owns the network and turns a batch into a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tl.config import Keys, Phase
from tl.data.streams import Batch
from tl.models.network import Network
from tl.models.source_head import SourceHead

Need = Literal["images", "pretrained", "source_head", "relationship", "target_predictions"]
Stream = Literal["source", "target", "strong"]


@dataclass
class Given:
    """What a run has for its objectives besides the network: a function of the config and the data.

    It is the same on every process and after a resume, is never trained and is in no checkpoint.
    What no phase's objective asks for (`Objective.needs`) is None.
    """

    class_counts: Tensor | None = None
    """int64 (C,): training images of each class"""
    pretrained: Network | None = None
    """the network as the weights left it, before the run's first step; in eval mode, frozen"""
    source_head: SourceHead | None = None
    """the classification layer that the weights came with"""
    relationship: Tensor | None = None
    """float32 (C, S): how the pretrained network's S classes are spread over each class's images;
    computed just before the first phase that asks for it, see `tl.objectives.co_tuning`"""

    def to(self, device: torch.device) -> None:
        """Move all of it, in place."""
        for module in (self.pretrained, self.source_head):
            if module is not None:
                module.to(device).to(memory_format=torch.channels_last)
        if self.relationship is not None:
            self.relationship = self.relationship.to(device)


@dataclass(frozen=True)
class Predictions:
    """What the network says of the whole target, in eval mode and in the view of validation.

    Each process has that of its own share of the images, on the CPU. Those that cannot be read are
    in nobody's.
    """

    id: Tensor
    """int64 (N,): which of the target's images"""
    features: Tensor
    """(N, D), float32 at least: what goes into the head, averaged over places where it is a map"""
    probabilities: Tensor
    """(N, C), likewise"""
    images: int
    """of the whole target"""
    device: torch.device
    """that of the network"""
    total: Callable[[Tensor], Tensor]
    """the sum over all processes of a tensor on ``device``; called by all of them together"""


class Objective(nn.Module):
    """A loss over the network, and whatever parameters of its own it trains.

    A fresh one is made for every phase and only it is given to Accelerate, so the DDP wrapper and
    the mixed-precision wrapper always fit what trains in that phase.
    """

    Options: ClassVar[type[Keys]] = Keys
    """What a phase's ``objective_options`` may hold, with defaults: a group of keys."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What it takes from `Given`; ``images``: it looks at the images themselves, so that it cannot
    be given cached features in their place. ``target_predictions``: see `take_predictions`."""

    streams: ClassVar[tuple[Stream, ...]] = ("source",)
    """What a batch is of. The first is the batch itself, others are in it by their names, with as
    many images each: ``source`` is labelled; ``target`` has no labels; ``strong`` are the same
    images as ``target``, in another and stronger augmentation (`augment` is ``trivial``)."""

    def __init__(self, network: Network, phase: Phase, given: Given | None = None) -> None:
        super().__init__()
        self.network = network
        self.phase = phase
        self.options: Any = self.Options.model_validate(phase.objective_options)
        # No module of this one: it would be wrapped, checkpointed and set to train.
        self.given = given or Given()
        self.predictions_of: int | None = None

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The loss of this process's share of a global batch.

        Args:
            batch: see `tl.data.streams.Batch`; ``weight`` (N,) is 0 for what must not count,
                ``global_count`` (scalar) is the sum of weights over the whole global batch, and
                ``key`` (N,) int64 are the images' keys. Say ``network.expect(batch)`` before the
                images go through: dropout and synchronized BatchNorm are the same on any number of
                processes by that. They go through as ``network(batch["image"], batch["start"])``:
                of images whose features are cached it is these that are in the batch.
            progress: how much of the phase is done, 0 to 1.

        Returns:
            ``loss``: this share's part of the global batch's mean. The parts of all processes
            (and of all micro-batches) sum up to it. Any other entry is a sum over this share's
            images, and is logged as a mean over images under its name.
        """
        raise NotImplementedError

    def take_predictions(self, seen: Predictions, epoch: int) -> None:
        """Look at what the network says of the target; sets ``predictions_of`` to the epoch.

        Called before each epoch of a phase, counted from 0, whose objective ``needs`` it, on all
        processes together. What is kept of it goes into `own_state`, and with it
        ``predictions_of``: a run that goes on within an epoch is given none.
        """
        raise NotImplementedError

    def own_state(self) -> dict[str, Tensor]:
        """Parameters and buffers besides the network's: what a checkpoint keeps of an objective."""
        return {n: t for n, t in self.state_dict().items() if not n.startswith("network.")}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """The reverse of `own_state`."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith("network.") for name in missing), missing

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Name and parameter of all that trains: the network's by their own names, then others."""
        own = [(n, p) for n, p in self.named_parameters() if not n.startswith("network.")]
        both = [*self.network.named_weights(), *own]
        return [(name, p) for name, p in both if p.requires_grad]


def weighted_share(values: Tensor, batch: dict[str, Any]) -> Tensor:
    """This share's part of the global mean of ``values`` (N,): padding is worth nothing."""
    return (values * batch["weight"]).sum() / batch["global_count"]


def share_of(value: Tensor, batch: dict[str, Any]) -> Tensor:
    """This share's part of a scalar that all processes have alike, such as a penalty on weights.

    It is by the number of images. So the parts sum up to ``value`` over processes; and over
    micro-batches too, to the mean over images if it differs between these.
    """
    part = batch["weight"].double().sum() / batch["global_count"]
    return value * part.to(value.dtype)
