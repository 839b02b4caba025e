"""A loss or a gradient that is not finite, on any process: it moves nothing, and all know."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers, WorkerError
from safetensors.torch import load_file
from torch import Tensor

from tl.arguments import load
from tl.engine import checkpoint, runtime
from tl.engine import run as engine_run
from tl.engine.runtime import Runtime
from tl.tracking.jsonl import read

STEPS = 8
COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=16",
    "data.max_val=7",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "objective=outside_objectives:Eventful",
    "phases=[{name: only, train: last_stages(3), steps: 8}]",
    "global_batch_size=2",
    "optimizer.lr=0.01",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl]",
]
EVERY_STEP = ("checkpoint.every_steps=1", "tracking.log_every=1")


def run(run_dir: str, event: str, *overrides: str) -> dict[str, Any]:
    os.environ["TEST_EVENT"] = event
    try:
        loaded = load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={})
        return engine_run.run(loaded, resume="auto")
    finally:
        del os.environ["TEST_EVENT"]


def event(step: int, what: str, rank: int = 0) -> str:
    """In step ``step`` of the run, counted from 1 as in the record."""
    return f"only {(step - 1) / STEPS} {rank} {what}"


NO_EVENT = "- 0 0 -"


def state(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step}" / checkpoint.TENSORS)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def last(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "last" / "model.safetensors")


@pytest.mark.parametrize("what", ["nan", "inf"])
@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (2, 1)])
def test_the_run_stops_on_all_processes_and_no_checkpoint_is_poisoned(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int, rank: int, what: str
) -> None:
    with pytest.raises(WorkerError, match="the loss is not finite at step 5") as caught:
        gloo_workers.run(world_size, run, str(tmp_path), event(5, what, rank), *EVERY_STEP)
    assert caught.value.kind == "FloatingPointError"
    assert "nonfinite=skip(n)" in caught.value.message
    newest = checkpoint.newest(tmp_path / "checkpoints", print)
    assert newest is not None
    assert newest.name == "step-4"
    assert all(tensor.isfinite().all() for tensor in state(tmp_path, 4).values())
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_gradient_that_is_not_finite_is_seen_where_the_loss_is_a_number(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int
) -> None:
    poisoned = "objective=outside_objectives:Poisoned"
    with pytest.raises(WorkerError, match="the gradient is not finite at step 7"):
        gloo_workers.run(world_size, run, str(tmp_path), NO_EVENT, *EVERY_STEP, poisoned)
    assert checkpoint.committed(tmp_path / "checkpoints")[0].name == "step-6"


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_that_is_left_out_moves_nothing_and_does_not_count(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int
) -> None:
    happens = event(5, "nan", rank=world_size - 1)
    [summary, *_] = gloo_workers.run(
        world_size, run, str(tmp_path), happens, *EVERY_STEP, "nonfinite=skip(1)"
    )
    assert_equal(state(tmp_path, 5), state(tmp_path, 4))
    assert not torch.equal(*(state(tmp_path, n)["network/classifier.1.bias"] for n in (5, 6)))
    assert summary["left_out_steps"] == 1
    assert summary["images"] == 2 * (STEPS - 1)
    losses = {line["step"]: line["train/loss"] for line in read(tmp_path / "metrics.jsonl")
              if "train/loss" in line}  # fmt: skip
    assert all(isinstance(loss, float) for loss in losses.values())


def test_one_step_more_than_may_be_left_out_stops_the_run(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    with pytest.raises(WorkerError, match=r"step 7, once more than nonfinite=skip\(2\)"):
        gloo_workers.run(1, run, str(tmp_path), event(5, "nan+"), *EVERY_STEP, "nonfinite=skip(2)")
    assert_equal(state(tmp_path, 6), state(tmp_path, 4))


def test_it_does_not_matter_when_the_host_learns_of_it(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """With a line at every step it learns at once, without one a step later."""
    happens = event(3, "nan", rank=1)
    skip = "nonfinite=skip(1)"
    gloo_workers.run(2, run, str(tmp_path / "at once"), happens, *EVERY_STEP, skip)
    gloo_workers.run(2, run, str(tmp_path / "later"), happens, "tracking.log_every=100", skip)
    assert_equal(last(tmp_path / "later"), last(tmp_path / "at once"))
    with pytest.raises(WorkerError, match="not finite at step 3") as caught:
        gloo_workers.run(2, run, str(tmp_path / "stops"), happens, "tracking.log_every=100")
    assert caught.value.kind == "FloatingPointError"


def test_how_often_a_step_was_left_out_outlives_a_restart(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    skip = "nonfinite=skip(2)"
    with pytest.raises(WorkerError, match="once more than"):
        gloo_workers.run(1, run, str(tmp_path), event(4, "nan+"), *EVERY_STEP, skip)
    # Goes on after step 5, with two steps left out; the next bad one is one too many.
    with pytest.raises(WorkerError, match="step 7, once more than"):
        gloo_workers.run(1, run, str(tmp_path), event(7, "nan"), *EVERY_STEP, skip)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_run_that_goes_back_leaves_out_what_led_there(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int, log_every: int
) -> None:
    happens = event(5, "inf", rank=world_size - 1)
    [summary, *_] = gloo_workers.run(
        world_size, run, str(tmp_path), happens, "checkpoint.every_steps=3",
        f"tracking.log_every={log_every}", "nonfinite=rollback(1)",
    )  # fmt: skip
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-0", "step-3", "step-5", "step-6", "step-8"}
    assert_equal(state(tmp_path, 5), state(tmp_path, 3))
    assert (summary["left_out_steps"], summary["steps"]) == (2, STEPS)
    assert summary["images"] == 2 * (STEPS - 2)
    saved, _ = checkpoint.read(tmp_path / "checkpoints" / "step-5")
    assert saved["left_out"] == [[4, 5]]


def test_before_the_first_checkpoint_it_goes_back_to_the_start(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    [summary] = gloo_workers.run(
        1, run, str(tmp_path), event(2, "nan"), "nonfinite=rollback(1)", "tracking.log_every=1"
    )
    assert summary["left_out_steps"] == 2
    with pytest.raises(WorkerError, match="once more than"):
        gloo_workers.run(
            1, run, str(tmp_path / "again"), event(2, "nan+"), "nonfinite=rollback(1)",
            "tracking.log_every=1",
        )  # fmt: skip


# ------------------------------------------------------------------------------ fp16 and its scaler


def run_with_scaler(
    run_dir: str, event: str, scale: float, *overrides: str
) -> tuple[dict[str, Any], float]:
    """A run with a gradient scaler, as fp16 on a GPU has it, and the scale at its end.

    Accelerate gives one to GPUs alone, so it is put in its place here. The scaler is PyTorch's.
    """
    original = runtime.start

    def start(config: Any) -> Runtime:
        here = original(config)
        accelerator = here.accelerator
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        return dataclasses.replace(here, precision="fp16")

    runtime.start = start
    try:
        summary = run(run_dir, event, *overrides)
        newest = checkpoint.newest(Path(run_dir) / "checkpoints", print)
        assert newest is not None
        return summary, checkpoint.read_state(newest)["scaler"]["scale"]
    finally:
        runtime.start = original


def test_a_gradient_that_overflows_in_fp16_lowers_the_scale_and_is_no_fault(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    for summary, scale in gloo_workers.run(
        2, run_with_scaler, str(tmp_path), NO_EVENT, 2.0**40, *EVERY_STEP
    ):
        assert summary["left_out_steps"] == 0
        assert 1 < scale < 2.0**40
    assert summary["images"] < 2 * STEPS  # a step that the scaler leaves out does not count


def test_a_loss_that_is_not_finite_is_one_with_a_scaler_too(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    with pytest.raises(WorkerError, match="the loss is not finite at step 5") as caught:
        gloo_workers.run(2, run_with_scaler, str(tmp_path), event(5, "nan", 1), 1024.0, *EVERY_STEP)
    assert caught.value.kind == "FloatingPointError"
    with pytest.raises(WorkerError, match="the gradient is not finite"):
        gloo_workers.run(
            1, run_with_scaler, str(tmp_path / "low"), NO_EVENT, 0.5, *EVERY_STEP,
            "objective=outside_objectives:Poisoned",
        )  # fmt: skip


def test_a_run_with_a_scaler_goes_on_bit_for_bit(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        happens = event(5, "SIGTERM") if name == "cut" else NO_EVENT
        arguments = (str(tmp_path / name), happens, 256.0, *EVERY_STEP)
        if name == "cut":
            with pytest.raises(WorkerError, match="SIGTERM"):
                gloo_workers.run(2, run_with_scaler, *arguments)
            arguments = (str(tmp_path / name), NO_EVENT, 1.0, *EVERY_STEP)
        [(_, scale), *_] = gloo_workers.run(2, run_with_scaler, *arguments)
        assert scale != 256.0  # it has grown
    for step in (6, 7):
        assert_equal(state(tmp_path / "cut", step), state(tmp_path / "whole", step))
        scales = [
            checkpoint.read_state(tmp_path / name / "checkpoints" / f"step-{step}")["scaler"]
            for name in ("cut", "whole")
        ]
        assert scales[0] == scales[1]
