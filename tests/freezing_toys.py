"""Toy networks with stages, in which everything that can move in training does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tl.config import OptimizerConfig
from tl.freezing import freeze, trainable_names
from tl.models import zoo
from tl.models.network import Network
from tl.models.stages import Stage, is_below
from tl.optim import make_optimizer, parameter_groups

REAL = ["resnet18", "mobilenet_v3_small", "squeezenet1_0", "googlenet", "vit_b_16", "alexnet"]
_built: dict[str, Network] = {}


def on_meta(architecture: str) -> Network:
    """A network without memory: enough for names, modes and counts."""
    if architecture not in _built:
        with torch.device("meta"):
            _built[architecture] = zoo.build(architecture, 3)
    return copy.deepcopy(_built[architecture])


def all_names(network: Network) -> set[str]:
    return {name for name, _ in network.model.named_parameters()}


def below(network: Network, *prefixes: str) -> set[str]:
    return {name for name in all_names(network) if any(is_below(name, p) for p in prefixes)}


class Block(nn.Module):
    """Convolution, BatchNorm, dropout: what moves in training mode without any gradient."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.bn(self.conv(x))))


class Toy(nn.Module):
    """Two blocks, a hidden layer with dropout that stands by itself, and a head with one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Block(3), Block(4)
        self.flat = nn.Flatten()
        self.hidden, self.hidden_drop = nn.Linear(16, 8), nn.Dropout(0.5)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 3)


def toy() -> Network:
    torch.manual_seed(0)
    stages = [
        Stage("one", ("one",), ("one",)),
        Stage("two", ("two", "flat"), ("two",)),
        Stage("hidden", ("hidden", "hidden_drop"), ("hidden",)),  # as in VGG: dropout has no owner
        Stage("head", ("drop", "fc"), ("fc",)),
    ]
    return Network(Toy(), "toy", {}, stages)


def frozen(train: str, batch_norm: str = "train", make: Callable[[], Network] = toy) -> Network:
    network = make()
    freeze(network, trainable_names(network, train), batch_norm)
    return network


X = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def step(network: Network, steps: int = 3) -> None:
    """Train, the way a phase does: in training mode, with what the optimizer is given."""
    config = OptimizerConfig(lr=0.1, weight_decay=0.1)
    optimizer = make_optimizer(parameter_groups(network.model.named_parameters(), config), config)
    for _ in range(steps):
        network.train()
        optimizer.zero_grad()
        network(X).square().mean().backward()
        optimizer.step()


# --------------------------------------------------------------------------------- what is selected
