"""AdaBN learns from the source as without it, and its BatchNorm knows the target alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adaptation_toys import rows_of_all, shares_of_all, two_domains
from gloo_workers import GlooWorkers
from torch import Tensor, nn

from tl.arguments import load
from tl.config import Phase
from tl.engine import runtime
from tl.errors import UserError
from tl.freezing import freeze, trainable_names
from tl.models.network import Network
from tl.models.stages import Stage
from tl.models.synced_batch_norm import is_synchronized
from tl.objectives import Given, Objective, make_objective

N = 6
# Float64 sums in another order.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def network(norm: bool = True) -> Network:
    torch.manual_seed(0)

    def layer(width: int, kind: Any) -> nn.Module:
        return kind(width) if norm else nn.Tanh()

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), layer(4, nn.BatchNorm2d), nn.ReLU(), nn.Conv2d(4, 5, 3),
        layer(5, nn.BatchNorm2d), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 4), layer(4, nn.BatchNorm1d), nn.Dropout(0.3), nn.Linear(4, 3),
    ).double()  # fmt: skip
    stages = [
        Stage("stem", ("0", "1", "2"), ("0", "1")),
        Stage("body", ("3", "4", "5", "6", "7", "8", "9"), ("3", "4", "8", "9")),
        Stage("head", ("10", "11"), ("11",)),
    ]
    return Network(model, "toy", {"num_classes": 3}, stages)


def made(
    name: str = "adabn", train: str = "full", batch_norm: str = "train", momentum: Any = 0.3,
    norm: bool = True, **keys: Any,
) -> Objective:  # fmt: skip
    toy = network(norm)
    for module in toy.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
    phase = Phase(name="p", train=train, objective=name, batch_norm=batch_norm, **keys)  # type: ignore[arg-type]
    freeze(toy, trainable_names(toy, train), batch_norm)
    return make_objective(toy, phase, Given()).train()


def statistics(objective: Objective) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in objective.network.model.named_buffers()}


def batches(steps: int) -> list[dict[str, Any]]:
    found = []
    for step in range(steps):
        batch = rows_of_all(two_domains(N), range(N))
        batch["image"] = batch["image"] + step
        batch["target"]["image"] = batch["target"]["image"] * (2 + step)
        found.append(batch)
    return found


@pytest.mark.parametrize("momentum", [0.3, 1.0, None])
def test_statistics_are_those_of_a_network_that_only_the_target_went_through(momentum: Any) -> None:
    """Bit for bit, also of a cumulative average, which counts its batches."""
    objective, other = made(momentum=momentum), network().train()
    for layer in other.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = momentum
    for batch in batches(3):
        objective(batch, 0.5)
        other.expect(batch["target"])
        other(batch["target"]["image"])
    expected = dict(other.model.named_buffers())
    for name, buffer in statistics(objective).items():
        assert torch.equal(buffer, expected[name]), name
    assert objective.network.model.get_buffer("9.num_batches_tracked") == 3


@pytest.mark.parametrize("train", ["full", "last_stages(2)"])
def test_loss_and_gradient_are_those_of_training_on_the_source_alone(train: str) -> None:
    adabn, plain = made(train=train), made("supervised", train)
    for batch in batches(2):
        outputs = [objective(batch, 0.5) for objective in (adabn, plain)]
        assert outputs[0].keys() == outputs[1].keys()
        for key, value in outputs[0].items():
            assert torch.equal(value, outputs[1][key]), key
        for output in outputs:
            output["loss"].backward()
    for ours, theirs in zip(adabn.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            assert torch.equal(ours.grad, theirs.grad)


def test_under_autocast_the_gradient_is_that_of_training_on_the_source_alone() -> None:
    adabn, plain = made().float(), made("supervised").float()
    [batch] = batches(1)
    for part in (batch, batch["target"]):
        part["image"] = part["image"].float()
    for objective in (adabn, plain):
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(batch, 0.5)["loss"]
        loss.backward()
    for ours, theirs in zip(adabn.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_cached_features_of_the_frozen_prefix_give_the_same() -> None:
    on_images, on_features = (made(train="last_stages(2)") for _ in range(2))
    for batch in batches(2):
        cached = dict(batch, start=1, target=dict(batch["target"], start=1))
        for part in (cached, cached["target"]):
            part["image"] = on_features.network.features(part["image"], 1)
        outputs = on_images(batch, 0.5), on_features(cached, 0.5)
        assert torch.equal(outputs[0]["loss"], outputs[1]["loss"])
    found, expected = statistics(on_features), statistics(on_images)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_statistics_of_frozen_stages_stay_and_others_move() -> None:
    objective = made(train="last_stages(2)")
    before = statistics(objective)
    for batch in batches(2):
        objective(batch, 0.5)
    for name, buffer in statistics(objective).items():
        assert torch.equal(buffer, before[name]) == name.startswith("1."), name


def test_the_network_has_its_own_buffers_afterwards_even_if_the_pass_fails() -> None:
    objective = made()
    buffers = dict(objective.named_buffers())
    [batch] = batches(1)
    objective(batch, 0.5)
    with pytest.raises(RuntimeError):
        objective(batch | {"image": batch["image"][:, :2]}, 0.5)
    assert all(buffer is buffers[name] for name, buffer in objective.named_buffers())


def test_a_source_that_is_not_finite_leaves_the_statistics_finite() -> None:
    """In fp16 an activation may overflow: the step is then left out, and the run goes on."""
    objective = made()
    [batch] = batches(1)
    objective(batch | {"image": batch["image"] * torch.inf}, 0.5)
    assert all(buffer.isfinite().all() for buffer in statistics(objective).values())


def test_evaluation_goes_by_the_target() -> None:
    """With a momentum of 1, the target's images come out as in training."""
    objective = made(momentum=1.0)
    for module in objective.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    [batch] = batches(1)
    objective(batch, 0.5)
    images = batch["target"]["image"]
    layer = objective.network.model[0]  # type: ignore[index]
    x = layer(images)
    n = x.numel() / 4
    # In evaluation by the unbiased variance.
    variance = x.var((0, 2, 3), unbiased=False) * n / (n - 1)
    expected = (x - x.mean((0, 2, 3))[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
    found = objective.eval().network.model[:2](images)  # type: ignore[index]
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize(
    "keys",
    [
        {"batch_norm": "frozen"},
        {"train": "head"},
        {"norm": False},
        {"norm": False, "train": "head"},
    ],
    ids=str,
)
def test_without_statistics_that_move_it_is_refused_with_the_remedy(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"no BatchNorm of toy .* phase p.* model\.bottleneck=256"):
        made(**keys)


BATCHES: list[tuple[int, dict[str, int]]] = [
    (11, {"global_batch_size": 11}),
    (3, {"global_batch_size": 8}),
    (11, {"global_batch_size": 13, "gradient_accumulation": 2}),
]


def on_processes(momentum: Any) -> list[tuple[float, dict[str, Tensor], dict[str, Tensor]]]:
    """Of each batch this process's loss, the gradient after DDP, and the statistics."""
    here = runtime.start(load(None, [], environ={}).config)
    found = []
    for n, keys in BATCHES:
        objective = made(batch_norm="sync", momentum=momentum, **keys)
        layer = objective.network.model.get_submodule("9")
        assert is_synchronized(layer)
        trained = here.accelerator.prepare(objective)
        total = 0.0
        for batch in shares_of_all(two_domains(n), here.rank, here.world_size, objective.phase):
            loss = trained(batch, 0.3)["loss"]
            (loss * here.world_size).backward()
            total += loss.item()
        gradients = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
        found.append((total, gradients, statistics(objective)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.3, None])
def test_synchronized_it_is_the_same_on_any_number_of_processes(
    gloo_workers: GlooWorkers, momentum: Any
) -> None:
    [alone] = gloo_workers.run(1, on_processes, momentum)
    for world_size in (2, 4):
        together = gloo_workers.run(world_size, on_processes, momentum)
        for number, (loss, gradients, moved) in enumerate(alone):
            parts = [results[number] for results in together]
            assert sum(part for part, _, _ in parts) == pytest.approx(loss, rel=1e-11)
            for _, slopes, buffers in parts:
                torch.testing.assert_close(slopes, gradients, rtol=1e-9, atol=1e-11)
                torch.testing.assert_close(buffers, moved, **CLOSE)
