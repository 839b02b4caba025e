"""When a run stops, what it writes then and meanwhile, and that it goes on from there."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers, WorkerError
from safetensors.torch import load_file

from tl.arguments import load
from tl.engine import checkpoint, run_dir
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

ROOT = Path(__file__).parents[2]
STEPS = 8
COMMON = [
    "data.source=outside_sources:digits_with_a_signal",
    "data.image_size=32",
    "data.max_train=16",
    "data.max_val=7",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "strategy=head",
    "objective=outside_objectives:Eventful",
    "global_batch_size=4",
    "epochs=2",
    "tracking.trackers=[jsonl]",
]


def run(folder: str, *overrides: str, event: str = "- 0 0 -", signal: str = "") -> dict[str, Any]:
    os.environ.update(TEST_EVENT=event, TEST_SIGNAL=signal)
    try:
        loaded = load(None, [*COMMON, *overrides, f"run_dir={folder}"], environ={})
        return engine_run.run(loaded, resume="auto")
    finally:
        del os.environ["TEST_EVENT"], os.environ["TEST_SIGNAL"]


def run_with_event(folder: str, event: str, *overrides: str) -> dict[str, Any]:
    return run(folder, *overrides, event=event)


def run_with_signal(folder: str, signal: str, *overrides: str) -> dict[str, Any]:
    return run(folder, *overrides, signal=signal)


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def record(folder: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    lines = read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def assert_same_end(ours: Path, theirs: Path) -> None:
    """The same record, but for the last digits of sums that were added in two parts; weights."""
    assert len(record(ours)) == len(record(theirs))
    for mine, expected in zip(record(ours), record(theirs), strict=True):
        for key, value in expected.items():
            assert mine[key] == (pytest.approx(value, rel=1e-12) if "loss" in key else value)
    weights = [load_file(folder / "last" / "model.safetensors") for folder in (ours, theirs)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stop_between_two_lines_of_the_record_leaves_no_trace_in_it(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int
) -> None:
    """What was summed up since the last line is in the checkpoint."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    gloo_workers.run(world_size, run, str(whole), "tracking.log_every=3")
    happens = f"head {4 / STEPS} {world_size - 1} SIGUSR2"
    with pytest.raises(WorkerError, match="SIGUSR2"):
        gloo_workers.run(world_size, run_with_event, str(cut), happens, "tracking.log_every=3")
    assert status(cut)["step"] in (5, 6)  # at once, or when the flags of step 5 have arrived
    assert record(cut)[-1]["step"] < status(cut)["step"] or status(cut)["step"] == 6
    gloo_workers.run(world_size, run, str(cut), "tracking.log_every=3")
    assert_same_end(cut, whole)


def test_a_run_in_bf16_goes_on_bit_for_bit(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    whole, cut, bf16 = tmp_path / "whole", tmp_path / "cut", "mixed_precision=bf16"
    gloo_workers.run(2, run, str(whole), bf16)
    with pytest.raises(WorkerError, match="SIGINT"):
        gloo_workers.run(2, run_with_event, str(cut), f"head {4 / STEPS} 0 SIGINT", bf16)
    gloo_workers.run(2, run, str(cut), bf16)
    assert_same_end(cut, whole)


def test_a_file_asks_the_run_to_stop_once(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    tmp_path.joinpath("stop").touch()
    with pytest.raises(WorkerError, match="stop is there") as caught:
        gloo_workers.run(2, run, str(tmp_path))
    assert caught.value.kind == "Preempted"
    assert status(tmp_path)["state"] == "preempted"
    assert not tmp_path.joinpath("stop").exists()
    gloo_workers.run(2, run, str(tmp_path))
    assert status(tmp_path)["state"] == "done"


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_stops_within_an_evaluation_and_makes_up_for_it(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keys = ("data.max_val=null", "cache.features=false")  # with them it would take no time
    gloo_workers.run(world_size, run, str(whole), *keys)
    with pytest.raises(WorkerError, match="SIGTERM"):
        gloo_workers.run(world_size, run_with_signal, str(cut), "SIGTERM", *keys)
    assert status(cut)["step"] == 4
    assert "val/loss" not in record(cut)[-1]
    state, _ = checkpoint.read(cut / "checkpoints" / "step-4")
    assert state["evaluation_due"]
    gloo_workers.run(world_size, run, str(cut), *keys)
    assert_same_end(cut, whole)


# ---------------------------------------------------------------------------- what is written when


def test_a_checkpoint_is_due_after_so_many_minutes(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    gloo_workers.run(2, run, str(tmp_path), "checkpoint.every_minutes=1e-6", "checkpoint.keep=99")
    found = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    # The main process says so after the first step; all know of it a step later.
    assert {"step-2", "step-4", "step-8"} < found


def run_with_a_slow_disk(folder: str) -> int:
    """How many steps were done when the first checkpoint, that of step 1, had been written."""
    original, record = checkpoint.write, Path(folder) / "metrics.jsonl"
    seen: list[int] = []

    def slow(*arguments: Any) -> Path:
        deadline = time.monotonic() + 20
        while not seen and read(record)[-1]["step"] < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(read(record)[-1]["step"])
        return original(*arguments)

    checkpoint.write = slow
    try:
        run(folder, "checkpoint.every_minutes=1e-6", "tracking.log_every=1")
    finally:
        checkpoint.write = original
    return seen[0] if seen else 0


def test_training_goes_on_while_a_checkpoint_is_written(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """And what is written is the state that was, not the one that has come of it since."""
    [steps, _] = gloo_workers.run(2, run_with_a_slow_disk, str(tmp_path / "slow"))
    assert steps == 2
    gloo_workers.run(2, run, str(tmp_path / "whole"), "tracking.log_every=1")
    assert_same_end(tmp_path / "slow", tmp_path / "whole")


def test_a_checkpoint_is_the_state_at_its_step(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    every = ("checkpoint.every_steps=1", "checkpoint.keep=99")
    for step in (1, 2, 3):
        short = [f"phases.0.steps={step}", *every]
        gloo_workers.run(1, run, str(tmp_path / f"{step}"), *short, "schedule.name=constant")
    gloo_workers.run(1, run, str(tmp_path / "constant"), *every, "schedule.name=constant")
    for step in (1, 2, 3):
        ours, theirs = (
            load_file(tmp_path / name / "checkpoints" / f"step-{step}" / checkpoint.TENSORS)
            for name in ("constant", f"{step}")
        )
        shared = ours.keys() & theirs.keys()  # at the end of a phase there is no optimizer state
        assert "network/classifier.1.weight" in shared
        assert all(torch.equal(ours[name], theirs[name]) for name in shared)


# ------------------------------------------------------------------------------------- full disks


FULL = ("checkpoint.every_steps=1", "strategy=full")


def run_on_a_full_disk(folder: str, *overrides: str) -> dict[str, Any]:
    os.environ["TEST_FULL_DISK"] = ""
    try:
        return run(folder, *overrides)
    finally:
        del os.environ["TEST_FULL_DISK"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_full_disk_stops_the_run_with_path_and_errno_and_the_last_checkpoint_is_whole(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int
) -> None:
    with pytest.raises(WorkerError, match=r"\[Errno 27\] File too large: .*tensors") as caught:
        gloo_workers.run(world_size, run_on_a_full_disk, str(tmp_path), *FULL)
    assert caught.value.kind == "OSError"
    newest = checkpoint.newest(tmp_path / "checkpoints", print)
    assert newest is not None
    assert newest.name in ("step-2", "step-3")  # the latter was being written when it was full
    assert not list((tmp_path / "checkpoints").glob(".staging*"))
    assert status(tmp_path)["state"] == "failed"
    gloo_workers.run(world_size, run, str(tmp_path), *FULL)
    assert status(tmp_path)["state"] == "done"


def test_a_full_disk_can_be_borne(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    """Until there is room again: the checkpoints between are missing, and nothing else."""
    keep = ("checkpoint.keep=99", "disk_errors=continue")
    gloo_workers.run(2, run_on_a_full_disk, str(tmp_path / "run"), *FULL, *keep)
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {"step-1", "step-2", "step-7", "step-8"} <= names
    assert "step-4" not in names
    gloo_workers.run(2, run, str(tmp_path / "whole"), "strategy=full")
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    models = [
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole")
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


# ------------------------------------------------------------------------------ locks, time limits


HOLD = """
import sys, time
from pathlib import Path
from tl.engine import run_dir
lock = run_dir.Lock(Path(sys.argv[1]))
lock.take(print)
print("taken", flush=True)
time.sleep(float(sys.argv[2]))
"""


def run_with_patience(folder: str, seconds: float) -> dict[str, Any]:
    run_dir.SECONDS_TO_WAIT_FOR_ANOTHER = seconds
    try:
        return run(folder)
    finally:
        run_dir.SECONDS_TO_WAIT_FOR_ANOTHER = 60.0


@pytest.mark.parametrize(("holds", "patience"), [(100, 0.5), (1, 60)])
def test_two_jobs_do_not_write_to_one_folder(
    gloo_workers: GlooWorkers, tmp_path: Path, holds: float, patience: float
) -> None:
    """The second one waits for the first to end, as an orphan of a job that was requeued does."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), str(holds)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        if patience < holds:
            with pytest.raises(WorkerError, match=f"process {other.pid} on .* writes to") as caught:
                gloo_workers.run(2, run_with_patience, str(tmp_path), patience)
            assert caught.value.kind == "UserError"
            assert not (tmp_path / "config.yaml").exists()
        else:
            gloo_workers.run(2, run_with_patience, str(tmp_path), patience)
            assert status(tmp_path)["state"] == "done"
    finally:
        other.kill()
        other.wait()


def test_a_time_limit_stops_the_run_before_it_is_over(tmp_path: Path) -> None:
    """Its margin is more than twice what a checkpoint and a step have taken, and ten seconds."""
    limit = 20
    arguments = [*COMMON, "objective=supervised", "data.source=digits", "epochs=100000",
                 f"time_limit={limit}s", f"run_dir={tmp_path}"]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert time.monotonic() - began < limit
    assert done.returncode == 75, done.stderr
    assert "the time limit is near" in status(tmp_path)["message"]
    newest = checkpoint.newest(tmp_path / "checkpoints", print)
    assert newest is not None
    assert newest.name == f"step-{status(tmp_path)['step']}"
