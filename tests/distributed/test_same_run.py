"""Promises 2 and 3: every sample counts once, on 1, 2, 3 and 4 processes alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gloo_workers import GlooWorkers
from safetensors.torch import load_file

from tl.arguments import load
from tl.data.sampler import TrainSampler, epoch_order
from tl.engine import run as engine_run
from tl.engine import runtime
from tl.tracking.jsonl import read

# Float32 sums in another order. Over the steps below the difference grows: head-only training is
# convex and keeps it, training everything amplifies it.
HEAD_TOLERANCE, FULL_TOLERANCE = 1e-5, 2e-3

COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "model.weights=null",
    "global_batch_size=8",
    "epochs=2",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
    "data.workers=0",
]


def run(run_dir: str, *overrides: str) -> dict[str, Any]:
    return engine_run.run(load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={}))


def _records(folder: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    return [
        {k: v for k, v in line.items() if k not in timing}
        for line in read(folder / "metrics.jsonl")
    ]


def _assert_same(ours: list[dict[str, Any]], reference: list[dict[str, Any]], rel: float) -> None:
    assert len(ours) == len(reference)
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            expected = pytest.approx(value, rel=rel, abs=rel) if "loss" in key else value
            assert mine[key] == expected, (key, mine, theirs)


@pytest.mark.parametrize("images", [1, 2, 13, 53])
def test_head_training_is_the_same_on_1_2_3_and_4_processes(
    gloo_workers: GlooWorkers, tmp_path: Path, images: int
) -> None:
    """BatchNorm is frozen, dropout is on (MobileNet's head has it), augmentation too."""
    overrides = (
        "model.name=mobilenet_v3_small",
        "strategy=head",
        f"data.max_train={images}",
        f"data.max_val={images}",
    )
    for world_size in (1, 2, 3, 4):
        gloo_workers.run(world_size, run, str(tmp_path / str(world_size)), *overrides)
    reference = _records(tmp_path / "1")
    assert [line["step"] for line in reference if "train/loss" in line] == list(
        range(1, 2 * math.ceil(images / 8) + 1)
    )
    for world_size in (2, 3, 4):
        _assert_same(_records(tmp_path / str(world_size)), reference, HEAD_TOLERANCE)


def test_full_training_without_batchnorm_is_the_same_on_1_2_3_and_4_processes(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """With gradient accumulation, clipping, AdamW and label smoothing besides dropout."""
    overrides = (
        "model.name=squeezenet1_1",
        "strategy=full",
        "data.max_train=53",
        "data.max_val=13",
        "optimizer.name=adamw",
        "optimizer.lr=1e-4",
        "label_smoothing=0.1",
        "gradient_accumulation=2",
    )
    for world_size in (1, 2, 3, 4):
        gloo_workers.run(world_size, run, str(tmp_path / str(world_size)), *overrides)
    reference = _records(tmp_path / "1")
    for world_size in (2, 3, 4):
        _assert_same(_records(tmp_path / str(world_size)), reference, FULL_TOLERANCE)


def test_the_summary_is_that_of_the_record(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    [summary, other] = gloo_workers.run(
        2, run, str(tmp_path), "model.name=squeezenet1_1", "data.max_train=13", "data.max_val=53"
    )
    on_disk = json.loads((tmp_path / "summary.json").read_text())
    evaluations = [line for line in _records(tmp_path) if "val/accuracy" in line]
    best = max(evaluations, key=lambda line: (line["val/accuracy"], -line["val/loss"]))
    assert on_disk == summary
    assert on_disk["val/accuracy"] == best["val/accuracy"]
    assert on_disk["val/loss"] == best["val/loss"]
    assert on_disk["last/val/accuracy"] == evaluations[-1]["val/accuracy"]
    assert on_disk["steps"] == 4
    assert on_disk["images"] == 26
    assert on_disk["num_processes"] == 2
    assert on_disk["frozen_unchanged"] is True
    assert other["val/loss"] == summary["val/loss"]


def gradient_of_a_step(images: int, world_size: int, parts: int) -> list[torch.Tensor]:
    """The gradient that the loop's arithmetic gives for the first step, in float64."""
    from accelerate import Accelerator
    from torch import nn

    from tl.config import Phase
    from tl.engine.loop import _parts
    from tl.models.network import Network
    from tl.models.stages import Stage
    from tl.objectives.supervised import Supervised

    here = runtime.start(load(None, [], environ={}).config)
    assert isinstance(here.accelerator, Accelerator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    stages = [Stage("head", ("0", "1"), ("1",))]
    objective = Supervised(Network(model, "toy", {}, stages), Phase(name="toy", train="full"))
    trained = here.accelerator.prepare(objective)
    data, labels = _toy_data(images)
    sampler = TrainSampler(images, 8, 0, 0, 0, 1, here.rank, here.world_size)
    [keys] = list(sampler)
    ids = torch.tensor([i for _, i in keys])
    real = ids >= 0
    batch = {
        "image": data[ids.clamp(min=0)] * real[:, None, None, None],
        "label": labels[ids.clamp(min=0)] * real,
        "id": ids,
        "key": ids,
        "weight": real.double(),
    }
    count = here.all_reduce(batch["weight"].sum())
    for micro, is_last in _parts(batch, parts):
        if is_last:
            loss = trained({**micro, "global_count": count}, 0.0)["loss"]
            here.accelerator.backward(loss * here.world_size)
        else:
            with here.accelerator.no_sync(trained):
                loss = trained({**micro, "global_count": count}, 0.0)["loss"]
                here.accelerator.backward(loss * here.world_size)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _toy_data(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(images, 3, 2, 2, generator=generator, dtype=torch.float64)
    return data, torch.randint(0, 3, (images,), generator=generator)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("images", [1, 5, 8])
def test_the_gradient_is_that_of_the_mean_over_the_global_batch(
    gloo_workers: GlooWorkers, world_size: int, images: int
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).double()
    data, labels = _toy_data(images)
    ids = torch.from_numpy(epoch_order(images, 0, 0)[:8])
    # The objective takes the loss in float32, so float32 rounding is what is allowed.
    F.cross_entropy(model(data[ids]).float(), labels[ids]).backward()
    expected = [p.grad for p in model.parameters()]
    for parts in (1, 2):
        for gradient in gloo_workers.run(world_size, gradient_of_a_step, images, world_size, parts):
            for ours, theirs in zip(gradient, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_all_processes_end_with_the_same_weights(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    """The last model and the best one are those that a single process gets."""
    overrides = ("model.name=squeezenet1_1", "strategy=head", "data.max_train=53", "data.max_val=9")
    for world_size in (1, 3):
        gloo_workers.run(world_size, run, str(tmp_path / str(world_size)), *overrides)
    for which in ("model", "last"):
        ours, theirs = (load_file(tmp_path / n / which / "model.safetensors") for n in ("3", "1"))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
