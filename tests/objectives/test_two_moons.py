"""Adaptation does what it is for, where one can see it: two moons, and the same turned by 30°.

After an experiment of Ganin et al., JMLR 2016. From the source alone the network classifies four of
five of the turned points; it has 15 hidden units in each of two layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tl.config import Phase
from tl.models.dropout import image_keys
from tl.models.network import Network
from tl.models.stages import Stage
from tl.objectives import Given, make_objective

POINTS, BATCH, STEPS, RATE = 300, 64, 400, 0.1

# In float64 another order of a sum does not grow into another result in so many steps. Right on the
# target, with this seed (and others): source alone 0.78 (0.71 to 0.86); dann 0.99 (0.88 to 1.00);
# cdan 0.96 (0.89 to 1.00); bsp 0.94 (0.90 to 1.00); mdd 0.90 (0.87, 0.90).
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "dann": ({"width": 32}, 0.9),
    "cdan": ({"width": 32}, 0.9),
    "bsp": ({"width": 32, "adversary": "dann"}, 0.9),
    "mdd": ({"width": 32, "strength": 0.2, "alpha": 10.0}, 0.85),
}
"""options, and how much of the target is to be right"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than layers as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def moons(degrees: float, seed: int) -> tuple[Tensor, Tensor]:
    """Points as images (POINTS, 2, 1, 1), and which moon each is of."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(POINTS) % 2
    at = math.pi * torch.rand(POINTS, generator=draw, dtype=torch.float64)
    upper = torch.stack([at.cos() - 0.5, at.sin() - 0.25], 1)
    lower = torch.stack([0.5 - at.cos(), 0.25 - at.sin()], 1)
    points = torch.where(label[:, None] == 0, upper, lower)
    points = points + 0.05 * torch.randn(POINTS, 2, generator=draw, dtype=torch.float64)
    turn = math.radians(degrees)
    turned = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return (points @ turned.to(points))[:, :, None, None], label


def right_on_target(method: str, options: dict[str, Any]) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 15), nn.ReLU(), nn.Linear(15, 15), nn.ReLU(), nn.Linear(15, 2)
    ).double()
    body = Stage("body", ("0", "1", "2", "3", "4"), ("1", "3"))
    about = {"num_classes": 2, "in_channels": 2, "image_size": 1}
    network = Network(model, "moons", about, [body, Stage("head", ("5",), ("5",))])
    phase = Phase(name="p", train="full", objective=method, objective_options=options)
    objective = make_objective(network, phase, Given()).train()
    trained = [p for _, p in objective.trained_parameters()]
    sgd = torch.optim.SGD(trained, lr=RATE, momentum=0.9)
    source, labels = moons(0, 10)
    target, truth = moons(30, 20)

    def part(points: Tensor, ids: Tensor, step: int) -> dict[str, Any]:
        return {
            "image": points[ids], "id": ids, "weight": torch.ones(BATCH), "global_count": BATCH,
            "key": image_keys(0, step, ids), "start": 0,
        }  # fmt: skip

    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        of_source, of_target = torch.randint(0, POINTS, (2, BATCH), generator=draw)
        batch = {**part(source, of_source, step), "label": labels[of_source]}
        batch["target"] = part(target, of_target, step)
        sgd.zero_grad()
        objective(batch, step / STEPS)["loss"].backward()
        sgd.step()
    with torch.no_grad():
        assert (network(source).argmax(1) == labels).double().mean() > 0.98
        return (network(target).argmax(1) == truth).double().mean().item()


def test_from_the_source_alone_the_target_is_partly_wrong() -> None:
    assert right_on_target("supervised", {}) < 0.82


@pytest.mark.parametrize(
    "method",
    ["dann", "cdan", *(pytest.param(m, marks=pytest.mark.slow) for m in ("bsp", "mdd"))],
)
def test_adapted_to_the_target_more_of_it_is_right(method: str) -> None:
    options, least = METHODS[method]
    assert right_on_target(method, options) > least
