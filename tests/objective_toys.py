"""A small network in float64 with another one as its pretrained, and batches, for objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tl.config import Phase
from tl.data.sampler import share, share_of_pairs
from tl.models.dropout import image_keys
from tl.models.network import Network
from tl.models.source_head import SourceHead
from tl.models.stages import Stage
from tl.objectives import Given, Objective, make_objective

C, SOURCE, SIZE = 3, 5, 6
OPTIONS: dict[str, dict[str, Any]] = {
    "l2_sp": {"alpha": 0.7, "beta": 0.3},
    "delta": {"alpha": 0.7, "beta": 0.3, "stages": ["stem", "body"]},
    "bss": {"eta": 0.5, "k": 2},
    "co_tuning": {"strength": 1.7},
    "lwf": {"strength": 0.6, "temperature": 3.0},
}
"""far from the defaults, so that each term matters"""


def toy(seed: int, classes: int = C) -> Network:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 3, padding=1), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(5, classes),
    ).double()  # fmt: skip
    stages = [
        Stage("stem", ("0", "1"), ("0",)),
        Stage("body", ("2", "3", "4", "5"), ("2",)),
        Stage("head", ("6", "7"), ("7",)),
    ]
    return Network(model, "toy", {"num_classes": classes}, stages)


def given() -> Given:
    relationship = torch.rand(C, SOURCE, generator=torch.Generator().manual_seed(9))
    return Given(
        class_counts=torch.tensor([40, 9, 2]),
        pretrained=toy(1).eval().requires_grad_(False),
        source_head=SourceHead(toy(2, SOURCE)),
        relationship=relationship / relationship.sum(1, keepdim=True),
    )


def objective(name: str, dropout: bool = False, **keys: Any) -> Objective:
    network = toy(0)
    phase = Phase(
        name="p", train="full", objective=name, objective_options=OPTIONS.get(name, {}), **keys
    )
    made = make_objective(network, phase, given())
    for module in made.modules():
        if hasattr(module, "p") and not dropout:
            module.p = 0.0
    return made.train()


def whole_batch(n: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(n)
    ids = torch.arange(n)
    return {
        "image": torch.randn(n, 3, SIZE, SIZE, generator=draw, dtype=torch.float64),
        "label": torch.randint(0, C, (n,), generator=draw),
        "id": ids,
        "weight": torch.ones(n),
        "key": image_keys(0, 3, ids),
        "start": 0,
        "global_count": n,
    }


def rows(batch: dict[str, Any], chosen: Sequence[int]) -> dict[str, Any]:
    """These images of a batch as one share; if there is none, padding that must not matter."""
    taken = torch.tensor(list(chosen) or [0])
    part = {k: v[taken] if isinstance(v, Tensor) else v for k, v in batch.items()}
    if not chosen:
        part |= {"image": part["image"] + 9, "weight": torch.zeros(1), "id": torch.tensor([-1])}
    here = torch.arange(len(taken))
    part["mate"] = torch.where((here ^ 1) < len(taken), here ^ 1, here)
    return part


def shares(batch: dict[str, Any], rank: int, parts: int, phase: Phase) -> list[dict[str, Any]]:
    """What a process has of each micro-batch, as `TrainSampler` cuts them."""
    n, cut = len(batch["label"]), share_of_pairs if phase.mixes else share
    found = []
    for micro_batch in range(min(phase.gradient_accumulation, n)):
        images = range(n)[share(n, micro_batch, min(phase.gradient_accumulation, n))]
        found.append(rows(batch, images[cut(len(images), rank, parts)]))
    return found
