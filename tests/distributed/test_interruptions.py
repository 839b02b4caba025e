"""A run that is stopped at any step goes on bit for bit, with everything on that a run can have."""

from __future__ import annotations

import functools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers, WorkerError
from safetensors.torch import load_file

from tl.arguments import load
from tl.engine import checkpoint
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

# Gradual unfreezing in three phases, with augmentation, loader workers, gradient accumulation,
# dropout, weight decay and both optimizers. Two steps an epoch, the last of them not full.
PHASES = (
    "phases=["
    "{name: head, train: head, epochs: 1, optimizer: {lr: 0.05}},"
    "{name: top, train: last_stages(3), epochs: 2, optimizer: {name: adamw, lr: 1e-4}},"
    "{name: more, train: last_stages(5), epochs: 2, optimizer: {lr: 1e-3, weight_decay: 0.01}}]"
)
COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=13",
    "data.max_val=7",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "objective=outside_objectives:Eventful",
    "global_batch_size=8",
    "gradient_accumulation=2",
    "label_smoothing=0.1",
    "augment=trivial",
    "data.workers=2",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
    PHASES,
]
STEPS_OF = {"head": 2, "top": 4, "more": 4}
STEPS = [(phase, step) for phase, steps in STEPS_OF.items() for step in range(steps)]


def run(run_dir: str, event: str, *overrides: str) -> dict[str, Any]:
    """Start a run, or go on with it."""
    os.environ["TEST_NOTES"] = run_dir + "-notes"
    os.environ["TEST_EVENT"] = event
    Path(run_dir + "-notes").mkdir(exist_ok=True)
    if FLOAT64 in overrides:
        torch.set_default_dtype(torch.float64)
    try:
        loaded = load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={})
        return engine_run.run(loaded, resume="auto")
    finally:
        del os.environ["TEST_NOTES"], os.environ["TEST_EVENT"]
        torch.set_default_dtype(torch.float32)


NO_EVENT = "- 0 0 -"
FLOAT64 = "objective=outside_objectives:EventfulFloat64"


def event(step: int, what: str, rank: int = 0) -> str:
    """Something that happens in a step of the run, counted from 0."""
    phase, within = STEPS[step]
    return f"{phase} {within / STEPS_OF[phase]} {rank} {what}"


def images_seen(run_dir: Path) -> dict[tuple[str, float], dict[str, str]]:
    """For each step which images, and their rounds, went in as which pixels.

    Of all processes and all starts.

    A step that was done again after a crash must have had the same images, as the same pixels.
    """
    steps: dict[tuple[str, float], dict[str, str]] = {}
    for file in Path(f"{run_dir}-notes").iterdir():
        for text in file.read_text().splitlines():
            line = json.loads(text)
            images = steps.setdefault((line["phase"], line["progress"]), {})
            for name, digest in line["seen"].items():
                assert images.setdefault(name, digest) == digest, (line["phase"], name)
    return steps


def record(run_dir: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    lines = read(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def assert_same_record(ours: Path, reference: Path, rel: float) -> None:
    """Sums of float64 over some steps may be added in another order."""
    mine, theirs = record(ours), record(reference)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for line, expected in zip(mine, theirs, strict=True):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            assert line[key] == (pytest.approx(value, rel=rel) if "loss" in key else value), key


def assert_bit_for_bit(ours: Path, reference: Path, from_step: int) -> None:
    """Weights, optimizer state and all else in every checkpoint from a step on."""
    for step in range(from_step, len(STEPS) + 1):
        mine, theirs = (
            load_file(folder / "checkpoints" / f"step-{step}" / checkpoint.TENSORS)
            for folder in (ours, reference)
        )
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), (step, name)
    for which in ("model", "last"):
        mine, theirs = (
            load_file(folder / which / "model.safetensors") for folder in (ours, reference)
        )
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), which


@pytest.fixture(scope="module")
def whole_runs(
    gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """Runs that were never interrupted, on one process and on two."""
    folder = tmp_path_factory.mktemp("whole")
    for world_size in (1, 2):
        gloo_workers.run(world_size, run, str(folder / str(world_size)), NO_EVENT)
    return {world_size: folder / str(world_size) for world_size in (1, 2)}


def stop_and_go_on(
    gloo_workers: GlooWorkers, whole: Path, folder: Path, step: int, world_size: int
) -> None:
    signal, rank = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")[step % 4], step % world_size
    with pytest.raises(WorkerError) as caught:
        gloo_workers.run(world_size, run, str(folder), event(step, signal, rank))
    assert caught.value.kind == "Preempted"
    assert signal in caught.value.message
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("preempted", 75, step + 1)
    assert checkpoint.committed(folder / "checkpoints")[0].name == f"step-{step + 1}"
    gloo_workers.run(world_size, run, str(folder), NO_EVENT)
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert_bit_for_bit(folder, whole, from_step=step + 1)
    assert_same_record(folder, whole, rel=1e-12)
    assert images_seen(folder) == images_seen(whole)


def test_a_run_that_is_stopped_goes_on_bit_for_bit(
    gloo_workers: GlooWorkers, whole_runs: dict[int, Path], tmp_path: Path
) -> None:
    stop_and_go_on(gloo_workers, whole_runs[2], tmp_path / "run", step=3, world_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_run_that_is_stopped_at_any_step_goes_on_bit_for_bit(
    gloo_workers: GlooWorkers,
    whole_runs: dict[int, Path],
    tmp_path: Path,
    step: int,
    world_size: int,
) -> None:
    stop_and_go_on(gloo_workers, whole_runs[world_size], tmp_path / "run", step, world_size)


def test_every_step_has_its_images_once_and_every_epoch_all(whole_runs: dict[int, Path]) -> None:
    for whole in whole_runs.values():
        steps = images_seen(whole)
        assert len(steps) == len(STEPS)
        for phase, count in STEPS_OF.items():
            for epoch in range(count // 2):
                keys = [steps[phase, (2 * epoch + half) / count] for half in (0, 1)]
                halves = [{key.split()[0] for key in half} for half in keys]
                assert halves[0] | halves[1] == {str(i) for i in range(13)}
                assert not halves[0] & halves[1]
                assert [len(half) for half in halves] == [8, 5]
    assert images_seen(whole_runs[1]) == images_seen(whole_runs[2])


# How far a loss may be from that of the run on one process, by the type of the network.
TOLERANCES = {
    "float32": ([], 1e-5),
    "float64": ([FLOAT64], 1e-10),
    # BatchNorm that trains, in the last convolution and from the second phase on.
    "float64, batch_norm=sync": (
        [
            FLOAT64,
            "model.name=shufflenet_v2_x0_5",
            "data.image_size=64",
            PHASES.replace("last_stages(3)", "last_stages(2)")
            .replace("last_stages(5)", "last_stages(2)")
            .replace("train: last", "batch_norm: sync, train: last"),
        ],
        1e-10,
    ),
}


@pytest.fixture(scope="module")
def whole_run_of(
    gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run of a kind on one process that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def whole(kind: str) -> Path:
        gloo_workers.run(1, run, str(folder / kind), NO_EVENT, *TOLERANCES[kind][0])
        return folder / kind

    return whole


def change_processes(
    gloo_workers: GlooWorkers, whole: Path, folder: Path, kind: str, seed: int
) -> None:
    """One process, then two, four and three, changed after three random steps."""
    overrides, tolerance = TOLERANCES[kind]
    draw = random.Random(seed)
    stops = sorted(draw.sample(range(len(STEPS) - 1), 3))
    for world_size, step in zip((1, 2, 4), stops, strict=True):
        happens = event(step, "SIGUSR1", rank=draw.randrange(world_size))
        with pytest.raises(WorkerError, match="SIGUSR1"):
            gloo_workers.run(world_size, run, str(folder), happens, *overrides)
    gloo_workers.run(3, run, str(folder), NO_EVENT, *overrides)
    assert images_seen(folder) == images_seen(whole)
    assert_same_record(folder, whole, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", TOLERANCES)
def test_a_run_goes_on_with_any_number_of_processes_from_any_step(
    gloo_workers: GlooWorkers,
    whole_run_of: Callable[[str], Path],
    tmp_path: Path,
    kind: str,
    seed: int,
) -> None:
    change_processes(gloo_workers, whole_run_of(kind), tmp_path / "run", kind, seed)
