"""An exponential moving average of what trains: the weights that are evaluated and kept.

After step n of a phase, counted from 0,

    shadow += (1 - d) * (weights - shadow),        d = min(decay, (1 + n) / (10 + n)),

the warm-up of TensorFlow's `ExponentialMovingAverage` (num_updates), without which the first
weights would count for 1 / (1 - decay) steps. It goes over the parameters that train and over the
statistics that BatchNorm gathers; whole numbers, such as its count of batches, are not averaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tl.errors import UserError
from tl.models.network import Network


def averaged_tensors(network: Network) -> dict[str, Tensor]:
    """What moves in the phase that `freeze` has set up and is averaged, by name."""
    was_training = network.training
    network.train()
    live: dict[str, Tensor] = {n: p for n, p in network.named_weights() if p.requires_grad}
    for name, module in network.model.named_modules():
        if module.training:
            for key, buffer in module.named_buffers(name, recurse=False):
                if buffer.is_floating_point():
                    live[key] = buffer
    network.train(was_training)
    return live


class Ema:
    """The shadow of one phase. Without a decay there is none, and every method does nothing."""

    def __init__(self, network: Network, decay: float | None) -> None:
        self._decay = decay
        self._live = averaged_tensors(network) if decay is not None else {}
        self._shadow = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int, left_out: Tensor) -> None:
        """Go on to the weights after a step.

        Args:
            step: its number in the phase, from 0.
            left_out: whether it was left out, and nothing is to move: bool, a scalar, on the
                device. The host does not look at it.
        """
        if self._decay is None:
            return
        shadow, live = list(self._shadow.values()), list(self._live.values())
        rate = 1 - min(self._decay, (1 + step) / (10 + step))
        rates = left_out.logical_not().to(shadow[0].dtype) * rate
        moves = torch._foreach_sub(live, shadow)
        torch._foreach_mul_(moves, rates)
        torch._foreach_add_(shadow, moves)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network be its average while the block runs. No value is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def keep(self) -> None:
        """Make the network its average for good: the phase is over."""
        for name, tensor in self._live.items():
            tensor.copy_(self._shadow[name])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self._shadow

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """The reverse of `state`. Where there was no average, it starts now.

        Raises:
            UserError: names or shapes are others.
        """
        if self._decay is None or not state:
            return
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in self._live.items()}:
            raise UserError(f"{source} holds an average (ema) of other weights than this phase's")
        for name, tensor in state.items():
            self._shadow[name].copy_(tensor)

    def _swap(self) -> None:
        for name, tensor in self._live.items():
            tensor.data, self._shadow[name].data = self._shadow[name].data, tensor.data
