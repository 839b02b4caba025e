"""LoRA's adapters: weights that stay as they are, and a trained product of two thin matrices.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. Of a weight W with rows
(output channels) and columns (all else: input channels of its group, times the kernel's places)

    W' = W + (alpha / r) * (B A).view_as(W),        A: (r, columns), B: (rows, r)

takes the place of W while the network runs. That is the adapter beside the layer that the paper
draws, for a convolution, grouped or not, as for a linear layer, and it works as well where the
weight is used by another module than its own (torchvision's attention).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from tl.errors import UserError

ALPHA = 16.0
"""The paper: a constant, so that the rate need not be found anew for another r."""


class Adapter(nn.Module):
    """The two factors of one weight. B is zero at first, so W' = W; A has the variance 1/columns.

    r is no more than the weight's own largest rank.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = matrix_shape(weight)
        self.scale = ALPHA / rank
        rank = min(rank, rows, columns)
        start = torch.randn(rank, columns, generator=generator, dtype=torch.float32)
        self.A = nn.Parameter(start.to(weight) / math.sqrt(columns))
        self.B = nn.Parameter(torch.zeros(rows, rank).to(weight))

    def adapted(self, weight: Tensor) -> Tensor:
        """W', in the shape and memory layout of W. In its precision too, whatever autocast says."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.B @ self.A).mul(self.scale).view(weight.shape)


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of a weight as a matrix."""
    return len(weight), weight[0].numel()


def num_parameters(weight: Tensor, rank: int) -> int:
    """How many parameters the adapter of a weight has."""
    rows, columns = matrix_shape(weight)
    return min(rank, rows, columns) * (rows + columns)


class Adapters(nn.Module):
    """The adapters of a network's weights, by the weights' names.

    Their parameters are called ``WEIGHT.lora_A`` and ``WEIGHT.lora_B``: names below the weight's,
    so they belong to its stage. They hold no part of the network.
    """

    def __init__(self, weights: Mapping[str, Tensor], rank: int, seed: int) -> None:
        """
        Args:
            weights: by their names; of two dimensions or more.
            seed: of A, drawn in the order of ``weights``: the same on every process.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.targets = tuple(weights)
        self._of = nn.ModuleList(Adapter(weight, rank, generator) for weight in weights.values())
        self._in_place = False

    def named(self) -> dict[str, nn.Parameter]:
        """All that trains."""
        found = {}
        for target, adapter in self._adapters():
            found[f"{target}.lora_A"], found[f"{target}.lora_B"] = adapter.A, adapter.B
        return found

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Let ``model`` run with W' in the place of every W while the block runs.

        W' lies in the ``__dict__`` of the module, where Python looks before `nn.Module` looks among
        the parameters: these, and their names, stay what they are. A block within a block changes
        nothing.
        """
        if self._in_place:
            yield
            return
        self._in_place = True
        places = []
        try:
            for target, adapter in self._adapters():
                module, name = _place(model, target)
                places.append((module, name))
                module.__dict__[name] = adapter.adapted(getattr(module, name))
            yield
        finally:
            for module, name in places:
                module.__dict__.pop(name, None)
            self._in_place = False

    @torch.no_grad()
    def merged(self, model: nn.Module) -> dict[str, Tensor]:
        """Every W', bit for bit that which ``model`` runs with."""
        return {t: a.adapted(model.get_parameter(t)) for t, a in self._adapters()}

    @torch.no_grad()
    def merge_into(self, model: nn.Module) -> None:
        """Make every W of ``model`` its W'. Afterwards these adapters are to be dropped."""
        for target, weight in self.merged(model).items():
            model.get_parameter(target).copy_(weight)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load what `named` held.

        Raises:
            UserError: names or shapes are others.
        """
        mine = self.named()
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in mine.items()}:
            raise UserError(f"{source} holds other adapters (LoRA) than this phase trains")
        for name, tensor in state.items():
            mine[name].copy_(tensor)

    def _adapters(self) -> Iterator[tuple[str, Adapter]]:
        for target, adapter in zip(self.targets, self._of, strict=True):
            assert isinstance(adapter, Adapter)
            yield target, adapter


def _place(model: nn.Module, target: str) -> tuple[nn.Module, str]:
    """The module that has the weight, and what it calls it."""
    module, _, name = target.rpartition(".")
    return model.get_submodule(module), name
