"""The classification layer that weights came with, apart from the network they are loaded into."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn

from tl.errors import UserError
from tl.models import weights, zoo
from tl.models.dropout import ImageDropout
from tl.models.network import Network
from tl.models.stages import run_stage


class SourceHead(nn.Module):
    """The head of a network, which a copy of it is made of, for what the stage before it gives."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.stage = network.stages[-1]
        self.model = nn.Module()  # with what the stage runs, under the same names
        for step in self.stage.steps:
            if isinstance(step, str):
                *path, last = step.split(".")
                holder = self.model
                for part in path:
                    if not hasattr(holder, part):
                        holder.add_module(part, nn.Module())
                    holder = holder.get_submodule(part)
                holder.add_module(last, copy.deepcopy(network.model.get_submodule(step)))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, S) of the source's classes for the output of the stage before the head."""
        return run_stage(self.stage, self.model, x)

    def trained_with(self, network: Network) -> Self:
        """Let it train, with the dropout of ``network``: what its own head drops this one does."""
        for module in self.modules():
            if isinstance(module, ImageDropout):
                module.draws = network.draws
        return self.train().requires_grad_(True)


def load_source_head(
    network: Network, chosen: str | None, asked_by: str, key: str | None = None
) -> SourceHead:
    """The head of the weights ``chosen`` for ``network``, as `weights.load` takes them.

    Raises:
        UserError: there are no weights, they have no head, or it is of another shape.
    """
    if chosen is None:
        raise UserError(f"{asked_by} needs pretrained weights, and model.weights is null")
    found_in = weights.read(network, chosen, key=key)
    source = found_in.source
    state, _, _ = weights.by_own_names(network, found_in.state, source)
    head = network.stages[-1]
    own = {n: p for n, p in network.model.named_parameters() if head.owns_name(n)}
    if missing := [name for name in own if name not in state]:
        raise UserError(
            f"{asked_by} needs the classification layer of the pretrained network, and {source} "
            f"has none ({', '.join(missing)} missing). Give weights with their head, or another "
            "objective, such as l2_sp."
        )
    found = {name: state[name] for name in own}
    if wrong := [n for n, p in own.items() if not p.dim() or found[n].shape[1:] != p.shape[1:]]:
        raise UserError(
            f"{asked_by} needs a classification layer for this network's features, and {source} "
            f"has one of another shape ({wrong[0]} {tuple(found[wrong[0]].shape)})"
        )
    classes = len(next(iter(found.values())))
    built = zoo.rebuild(network.architecture, {**network.arguments, "num_classes": classes})
    if "final_relu" in built.arguments:
        zoo.set_final_relu(built, found_in.final_relu)
    with torch.no_grad():
        for name, value in found.items():
            built.model.get_parameter(name).copy_(value)
    return SourceHead(built)
