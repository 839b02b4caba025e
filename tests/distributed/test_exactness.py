"""A run on any number of processes is a plain PyTorch loop in float64, to rounding."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gloo_workers import GlooWorkers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tl.arguments import load
from tl.data.sampler import epoch_order
from tl.data.sources import open_source
from tl.data.split import Split
from tl.data.transforms import normalise, plain_view
from tl.engine import run as engine_run
from tl.freezing import freeze, trainable_names
from tl.models import zoo
from tl.models.network import Network
from tl.models.preprocessing import preprocessing_of, with_image_size
from tl.tracking.jsonl import read

NETWORK, SIZE, BATCH, EPOCHS, LR = "shufflenet_v2_x0_5", 64, 4, 2, 0.05
# The top convolution, its BatchNorm and the head. Through all 56 layers of BatchNorm of a random
# network, on batches this small, rounding errors grow a hundredfold with every step.
STAGES = 2
# Float64 sums in another order, over up to ten steps.
CLOSE = 1e-10
COMMON = [
    "data.source=digits",
    f"data.image_size={SIZE}",
    "data.workers=0",
    f"model.name={NETWORK}",
    "model.head=keep",
    "objective=outside_objectives:Float64",
    f"strategy=last_stages({STAGES})",
    "batch_norm=sync",
    "augment=none",
    f"global_batch_size={BATCH}",
    f"epochs={EPOCHS}",
    f"optimizer.lr={LR}",
    "optimizer.momentum=0.9",
    "schedule.name=constant",
    "clip_norm=null",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
]


def run(run_dir: str, *overrides: str) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    try:
        loaded = load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={})
        return engine_run.run(loaded)
    finally:
        torch.set_default_dtype(torch.float32)


def _images(split: Split) -> tuple[Tensor, Tensor]:
    preprocessing = with_image_size(preprocessing_of(NETWORK, None), SIZE)
    view = plain_view(preprocessing)
    images = torch.stack([view(split.read(i)) for i in range(len(split))])
    images = normalise(images, preprocessing)
    return images.double(), torch.from_numpy(split.labels)


def _network() -> Network:
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(5)
        return zoo.build(NETWORK, 10, SIZE)
    finally:
        torch.set_default_dtype(torch.float32)


@lru_cache
def reference(
    images: int, micro_batches: int
) -> tuple[list[float], list[dict[str, float]], dict[str, Tensor]]:
    """Losses of the steps, evaluations after the epochs, and the weights at the end."""
    overrides = [*COMMON, f"data.max_train={images}", f"data.max_val={images}"]
    source = open_source(load(None, overrides, environ={}).config.data, 0)
    (x, y), (val_x, val_y) = _images(source.train), _images(source.val)
    assert len(x) == len(val_x) == images
    network = _network()
    freeze(network, trainable_names(network, f"last_stages({STAGES})"))
    model, trained = network.model, [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR, momentum=0.9)
    losses, evaluations = [], []
    for epoch in range(EPOCHS):
        network.train()
        for ids in torch.from_numpy(epoch_order(images, 0, epoch)).split(BATCH):
            optimizer.zero_grad()
            losses.append(0.0)
            for part in ids.tensor_split(min(micro_batches, len(ids))):
                loss = F.cross_entropy(model(x[part]), y[part], reduction="sum") / len(ids)
                loss.backward()
                losses[-1] += loss.item()
            optimizer.step()
        with torch.no_grad():
            logits = model.eval()(val_x)
        correct = (logits.argmax(1) == val_y).sum().item()
        val_loss = F.cross_entropy(logits, val_y).item()
        evaluations.append({"val/accuracy": correct / images, "val/loss": val_loss})
    return losses, evaluations, model.state_dict()


def sizes(world_size: int) -> list[int]:
    """One image; one less than a batch; one more than a batch a process; a prime."""
    return [1, BATCH - 1, BATCH * world_size + 1, 7]


@pytest.mark.parametrize(
    ("world_size", "images", "micro_batches"),
    [
        pytest.param(
            world, images, 1, marks=() if world in (1, 4) and images < 17 else pytest.mark.slow
        )
        for world in (1, 2, 3, 4)
        for images in sizes(world)
    ]
    + [(1, 7, 2), (2, 7, 2)],
)
def test_gradients_statistics_and_evaluations_are_those_of_a_plain_loop(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int, images: int, micro_batches: int
) -> None:
    save_file(_network().model.state_dict(), tmp_path / "start.safetensors")
    gloo_workers.run(
        world_size,
        run,
        str(tmp_path / "run"),
        f"data.max_train={images}",
        f"data.max_val={images}",
        f"model.weights={tmp_path / 'start.safetensors'}",
        f"gradient_accumulation={micro_batches}",
    )
    lines = read(tmp_path / "run" / "metrics.jsonl")
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == list(
        range(1, EPOCHS * math.ceil(images / BATCH) + 1)
    )
    losses, evaluations, weights = reference(images, micro_batches)
    assert [line["train/loss"] for line in steps] == pytest.approx(losses, rel=CLOSE)
    validations = [line for line in lines if "val/loss" in line]
    for line, expected in zip(validations, evaluations, strict=True):
        assert line["val/accuracy"] == expected["val/accuracy"]
        assert line["val/loss"] == pytest.approx(expected["val/loss"], rel=CLOSE)
    ours = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert ours.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(ours[name], tensor, rtol=CLOSE, atol=CLOSE)
