"""A run goes on bit for bit from each of its steps, through all phases of every strategy."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers
from safetensors.torch import load_file

from tl.arguments import load
from tl.engine import checkpoint
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

# Two steps an epoch, the second not full; a rate and a weight decay of its own for each stage.
COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=13",
    "data.max_val=7",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=8",
    "optimizer.lr=0.05",
    "optimizer.layer_decay=0.8",
    "optimizer.head_factor=2",
    "optimizer.weight_decay=0.01",
    "optimizer.decay_norm_and_bias=false",
    "augment=flip",
    "threads=1",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
]
STRATEGIES = {
    "lp_ft": (["strategy=lp_ft", "epochs=2"], 4),
    "bottleneck": (["strategy=bottleneck", "epochs=2", "optimizer.name=adamw"], 4),
    "gradual": (["strategy=gradual(4)", "epochs=4"], 8),
    "surgical": (["strategy=surgical", "epochs=1"], 2),
    "discriminative": (["strategy=discriminative", "optimizer.name=adamw", "epochs=1"], 2),
    "auto": (["strategy=auto", "epochs=1"], 2),
}


def run(folder: str, name: str) -> None:
    """Start a run, or go on with it."""
    with contextlib.redirect_stdout(io.StringIO()):
        arguments = [*COMMON, *STRATEGIES[name][0], f"run_dir={folder}"]
        engine_run.run(load(None, arguments, environ={}), resume="auto")


def died_after(step: int, whole: Path, folder: Path) -> None:
    """What a run leaves that was killed when nothing but this step's checkpoint was there."""
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    for found in checkpoint.committed(folder / "checkpoints"):
        if found.name != f"step-{step}":
            shutil.rmtree(found)


def record(folder: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    lines = read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def assert_goes_on(whole: Path, folder: Path, name: str, step: int, go_on: Callable) -> None:
    died_after(step, whole, folder)
    go_on(str(folder), name)
    steps = STRATEGIES[name][1]
    for now in range(step, steps + 1):
        mine, theirs = (
            load_file(each / "checkpoints" / f"step-{now}" / checkpoint.TENSORS)
            for each in (folder, whole)
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), now
    for file in ("last/model.safetensors", "model/model.safetensors"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    ours, reference = (load(each / "config.yaml", environ={}) for each in (folder, whole))
    assert ours.phases == reference.phases
    assert record(folder) == record(whole)


@pytest.mark.parametrize(("name", "step"), [("lp_ft", 2), ("gradual", 5)])
def test_a_strategys_run_goes_on_between_two_phases_and_within_one(
    tmp_path: Path, name: str, step: int
) -> None:
    run(str(tmp_path / "whole"), name)
    assert len(checkpoint.committed(tmp_path / "whole" / "checkpoints")) == STRATEGIES[name][1]
    assert_goes_on(tmp_path / "whole", tmp_path / str(step), name, step, run)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategys_run_goes_on_from_every_step(
    gloo_workers: GlooWorkers, tmp_path: Path, name: str, world_size: int
) -> None:
    def go_on(folder: str, name: str) -> None:
        gloo_workers.run(world_size, run, folder, name)

    go_on(str(tmp_path / "whole"), name)
    for step in range(1, STRATEGIES[name][1] + 1):
        assert_goes_on(tmp_path / "whole", tmp_path / str(step), name, step, go_on)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategys_losses_are_the_same_on_two_processes(
    gloo_workers: GlooWorkers, tmp_path: Path, name: str
) -> None:
    """Float32: sums in another order, over eight steps at most."""
    for world_size in (1, 2):
        gloo_workers.run(world_size, run, str(tmp_path / str(world_size)), name)
    alone, both = (read(tmp_path / str(world_size) / "metrics.jsonl") for world_size in (1, 2))
    assert len(alone) == len(both)
    for line, other in zip(alone, both, strict=True):
        assert line.get("lr") == other.get("lr")
        for key in ("train/loss", "val/loss"):
            assert (key in line) == (key in other)
            assert line.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-4)
