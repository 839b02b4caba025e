"""A compiled phase computes what it computes without, and is compiled once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from adaptation_toys import adaptation, rows_of_all, two_domains
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.utils import counters

from tl.config import Phase
from tl.data.sampler import TrainSampler
from tl.engine.compiling import compile_for
from tl.freezing import freeze, trainable_names
from tl.models.dropout import image_keys
from tl.models.lora import adapt
from tl.models.network import Network
from tl.models.stages import Stage
from tl.objectives.supervised import Supervised


def objective(train: str) -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(16, 3),
    )  # fmt: skip
    stages = [Stage("stem", ("0", "1", "2", "3"), ("0",)), Stage("head", ("4", "5"), ("5",))]
    network = Network(model, "toy", {}, stages)
    adapt(network, train, 0)
    freeze(network, trainable_names(network, train))
    if network.adapters is not None:
        for parameter in network.adapters.named().values():
            nn.init.normal_(parameter, 0, 0.1)
    return Supervised(network, Phase(name="all", train=train)).train()


def batch(size: int, step: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    return {
        "image": torch.randn(size, 3, 8, 8, generator=draw),
        "label": torch.randint(0, 3, (size,), generator=draw),
        "id": torch.arange(size),
        "weight": torch.ones(size),
        "start": 0,
        "key": image_keys(0, step, torch.arange(size)),
        "global_count": size,
    }


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("train", ["full", pytest.param("lora(2)", marks=pytest.mark.slow)])
def test_loss_gradients_and_dropout_are_those_without_and_it_is_compiled_once(train: str) -> None:
    plain, compiled = objective(train), objective(train)
    compile_for(compiled, {4})
    counters.clear()
    for step in range(6):
        inputs = batch(3 if step == 3 else 4, step)
        outputs = [module(dict(inputs), step / 6) for module in (plain, compiled)]
        for module, output in zip((plain, compiled), outputs, strict=True):
            module.zero_grad()
            output["loss"].backward()
        # Float32 in another order, of some hundred terms.
        for name in outputs[0]:
            torch.testing.assert_close(outputs[1][name], outputs[0][name], rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(gradients(compiled), gradients(plain), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_an_objective_whose_numbers_follow_progress_is_compiled_once() -> None:
    plain, compiled = (adaptation("cdan", {"width": 7, "entropy": True}) for _ in range(2))
    compile_for(compiled, {6})
    counters.clear()
    for step in range(4):
        inputs = rows_of_all(two_domains(6), range(6))
        outputs = [module(inputs, step / 4) for module in (plain, compiled)]
        for module, output in zip((plain, compiled), outputs, strict=True):
            module.zero_grad()
            output["loss"].backward()
        for name in outputs[0]:
            torch.testing.assert_close(outputs[1][name], outputs[0][name], rtol=1e-11, atol=0)
        for ours, theirs in zip(gradients(compiled), gradients(plain), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    assert counters["stats"]["unique_graphs"] == 2  # before the terms, and after them


@given(
    num_images=st.integers(1, 60),
    global_batch_size=st.integers(4, 20),
    gradient_accumulation=st.integers(1, 3),
    world_size=st.integers(1, 4),
    pairs=st.booleans(),
)
def test_sizes_of_full_steps_are_those_that_the_sampler_gives(
    num_images: int,
    global_batch_size: int,
    gradient_accumulation: int,
    world_size: int,
    pairs: bool,
) -> None:
    for rank in range(world_size):
        sampler = TrainSampler(
            num_images=num_images,
            global_batch_size=global_batch_size,
            seed=0,
            first_epoch=0,
            first_step=0,
            last_step=1,
            rank=rank,
            world_size=world_size,
            gradient_accumulation=gradient_accumulation,
            pairs=pairs,
        )
        first_step = itertools.islice(sampler, sampler.micro_batches_in(0))
        assert sampler.sizes_of_full_steps() == {len(keys) for keys in first_step}


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_one_that_is_not(tmp_path: Any) -> None:
    from tl.arguments import load
    from tl.engine import run as engine_run
    from tl.tracking.jsonl import read

    losses = []
    for compiles in ("false", "true"):
        folder = tmp_path / compiles
        keys = [
            "data.source=digits", "data.image_size=32", "data.max_train=36", "data.max_val=11",
            "model.name=squeezenet1_1", "model.weights=null", "strategy=last_stages(2)",
            "global_batch_size=8", "epochs=2", "tracking.trackers=[jsonl]", "data.workers=0",
            "tracking.log_every=1", f"compile={compiles}", f"run_dir={folder}",
        ]  # fmt: skip
        engine_run.run(load(None, keys, environ={}))
        lines = read(folder / "metrics.jsonl")
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
