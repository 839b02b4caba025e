"""What every objective is: a module that owns the network and turns a batch into a loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tl.config import Phase
from tl.data.streams import Batch
from tl.models.network import Network


class Objective(nn.Module):
    """A loss over the network, and whatever parameters of its own it trains.

    A fresh one is made for every phase and only it is given to Accelerate, so the DDP wrapper and
    the mixed-precision wrapper always fit what trains in that phase.
    """

    def __init__(self, network: Network, phase: Phase) -> None:
        super().__init__()
        self.network = network
        self.phase = phase

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
        both = [*self.network.model.named_parameters(), *own]
        return [(name, p) for name, p in both if p.requires_grad]


def weighted_share(values: Tensor, batch: dict[str, Any]) -> Tensor:
    """This share's part of the global mean of ``values`` (N,): padding is worth nothing."""
    return (values * batch["weight"]).sum() / batch["global_count"]
