"""Runs with every objective: the same on any number of processes, and after a stop at any step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers, WorkerError
from safetensors.torch import load_file, save_file

from tl.arguments import load
from tl.data.sources import open_source
from tl.data.transforms import normalise, plain_view
from tl.engine import checkpoint
from tl.engine import run as engine_run
from tl.models import zoo
from tl.models.preprocessing import preprocessing_of, with_image_size
from tl.tracking.jsonl import read

# Two steps each. What is measured from the pretrained network comes after phases that moved away.
PHASES = (
    "phases=["
    "{name: mixed, mixup: 0.4, cutmix: 1, class_weights: effective(0.9), focal: 2},"
    "{name: co_tuning, objective: co_tuning, mixup: 0.2},"
    "{name: lwf, objective: lwf, objective_options: {strength: 2}},"
    "{name: bss, objective: bss, objective_options: {eta: 0.01, k: 2}},"
    "{name: l2_sp, objective: l2_sp, optimizer: {lr: 1e-4, name: adamw}},"
    "{name: delta, objective: delta, cutmix: 1, objective_options: {stages: [fire8, fire9]}}]"
)
STEPS = 12
COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=15",
    "data.max_val=5",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "global_batch_size=8",
    "gradient_accumulation=1",
    "epochs=1",
    "optimizer.lr=1e-3",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
]
EACH = [PHASES.replace("{name: ", "{train: last_stages(3), name: ")]


def run(run_dir: str, *overrides: str, resume: str = "auto") -> dict[str, Any]:
    loaded = load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={})
    return engine_run.run(loaded, resume=resume)


def run_with_notes(run_dir: str, notes: str, *overrides: str) -> None:
    os.environ["TEST_NOTES"] = notes
    try:
        run(run_dir, *overrides)
    finally:
        del os.environ["TEST_NOTES"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of seven classes, that had others to tell apart."""
    torch.manual_seed(3)
    state = zoo.build("squeezenet1_1", 7, 32).model.state_dict()
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    save_file(state, path)
    return f"model.weights={path}"


@pytest.fixture(scope="module")
def whole(
    gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory, weights: str
) -> dict[int, Path]:
    """Runs that were never stopped, on one process and on two."""
    folder = tmp_path_factory.mktemp("whole")
    for world_size in (1, 2):
        gloo_workers.run(world_size, run, str(folder / str(world_size)), weights, *EACH)
    return {world_size: folder / str(world_size) for world_size in (1, 2)}


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [line for line in read(folder / "metrics.jsonl") if "train/loss" in line]
    keys = ("train/", "step")
    return [{k: v for k, v in line.items() if k.startswith(keys)} for line in lines]


def test_every_objective_has_the_same_losses_on_1_and_2_processes(whole: dict[int, Path]) -> None:
    one, two = losses(whole[1]), losses(whole[2])
    assert len(one) == STEPS
    for mine, theirs in zip(two, one, strict=True):
        # Float32 sums in another order, over up to twelve steps of seven layers.
        assert mine == pytest.approx(theirs, rel=1e-4)
    logged = {key for line in one for key in line}
    assert logged >= {f"train/{name}" for name in ("l2_sp", "delta", "bss", "co_tuning", "lwf")}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [3, 4])
def test_and_on_3_and_4(
    gloo_workers: GlooWorkers, tmp_path: Path, weights: str, whole: dict[int, Path], world_size: int
) -> None:
    gloo_workers.run(world_size, run, str(tmp_path / "run"), weights, *EACH)
    for mine, theirs in zip(losses(tmp_path / "run"), losses(whole[1]), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def at_step(whole: Path, folder: Path, step: int) -> Path:
    """What a run that was killed after a step leaves."""
    shutil.copytree(whole, folder)
    for name in ("summary.json", "status.json"):
        (folder / name).unlink()
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.partition("-")[2]) > step:
            shutil.rmtree(path)
    return folder


@pytest.mark.parametrize(
    ("world_size", "step"),
    [
        pytest.param(w, s, marks=() if (w, s) in {(1, 5), (2, 9)} else pytest.mark.slow)
        for w, s in ((1, 5), *((2, step) for step in range(1, STEPS)))
    ],
)
def test_a_run_that_goes_on_from_any_step_is_bit_for_bit_the_whole_one(
    gloo_workers: GlooWorkers,
    tmp_path: Path,
    weights: str,
    whole: dict[int, Path],
    world_size: int,
    step: int,
) -> None:
    folder = at_step(whole[world_size], tmp_path / "run", step)
    gloo_workers.run(world_size, run, str(folder), weights, *EACH, f"run_dir={folder}")
    for later in range(step, STEPS + 1):
        mine, theirs = (
            load_file(where / "checkpoints" / f"step-{later}" / checkpoint.TENSORS)
            for where in (folder, whole[world_size])
        )
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), (later, name)


def test_no_checkpoint_holds_the_pretrained_network(whole: dict[int, Path]) -> None:
    """Of an objective's own it has the source's head, where that trains, and nothing else."""
    for step in range(1, STEPS + 1):
        names = load_file(whole[1] / "checkpoints" / f"step-{step}" / checkpoint.TENSORS)
        own = {name for name in names if name.startswith("objective")}
        trains = step in (3, 5)  # at the end of a phase nothing of the objective is kept
        assert len(own) == (2 if trains else 0), (step, own)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_relationship_is_the_mean_of_the_pretrained_networks_probabilities(
    gloo_workers: GlooWorkers, tmp_path: Path, weights: str, world_size: int
) -> None:
    notes = "objective=outside_objectives:NotesRelationship"
    overrides = (weights, notes, "strategy=head", "data.max_train=50")
    gloo_workers.run(world_size, run_with_notes, str(tmp_path / "run"), str(tmp_path), *overrides)

    data = load(None, [*COMMON, "data.max_train=50"], environ={}).config.data
    split = open_source(data, 0).train
    preprocessing = with_image_size(preprocessing_of("squeezenet1_1", None), 32)
    view = plain_view(preprocessing)
    images = normalise(torch.stack([view(split.read(i)) for i in range(50)]), preprocessing)
    network = zoo.build("squeezenet1_1", 7, 32)
    network.model.load_state_dict(load_file(weights.partition("=")[2]))
    zoo.set_final_relu(network, True)
    with torch.no_grad():
        chances = network.eval()(images).double().softmax(1)
    for rank in range(world_size):
        found = torch.load(tmp_path / f"{rank}.pt")
        for label in range(10):
            expected = chances[torch.from_numpy(split.labels) == label].mean(0).float()
            torch.testing.assert_close(found[label], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=l2_sp", "model.weights=null"], "needs pretrained weights, and model.weights"),
        (["objective=lwf", "model.weights=null"], "needs pretrained weights, and model.weights"),
        (["objective=lwf", "model.weights=HEADLESS"], "needs the classification layer.*has none"),
        (["objective=l2_sp", "objective_options.alpa=1"], r"unknown key.*Did you mean.*alpha"),
        (["objective=bss", "objective_options.k=0"], r"objective_options\.k: must be greater"),
        (["objective=delta", "objective_options.stages=[fire7, fire99]"], "unknown stage 'fire99'"),
        (["mixup=0.2", "global_batch_size=3"], "give each at least two images"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    gloo_workers: GlooWorkers, tmp_path: Path, weights: str, overrides: list[str], message: str
) -> None:
    state = load_file(weights.partition("=")[2])
    headless = {name: tensor for name, tensor in state.items() if "classifier" not in name}
    save_file(headless, tmp_path / "headless.safetensors")
    given = [o.replace("HEADLESS", str(tmp_path / "headless.safetensors")) for o in overrides]
    with pytest.raises(WorkerError, match=message) as caught:
        gloo_workers.run(2, run, str(tmp_path / "run"), weights, "strategy=full", *given)
    assert caught.value.kind == "UserError"
    assert not (tmp_path / "run").exists()
