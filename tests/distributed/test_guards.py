"""What a run refuses to do: go on with poisoned weights, moved frozen parts, or different data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers, WorkerError
from PIL import Image
from safetensors.torch import load_file

from tl.arguments import load
from tl.engine import checkpoint, run_dir
from tl.engine import run as engine_run

COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=26",
    "data.max_val=11",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "strategy=head",
    "global_batch_size=8",
    "tracking.trackers=[jsonl]",
    "data.workers=0",
]


def run(folder: str, *overrides: str, resume: str = "never") -> dict[str, Any]:
    loaded = load(None, [*COMMON, *overrides, f"run_dir={folder}"], environ={})
    return engine_run.run(loaded, resume=resume)


@pytest.mark.parametrize("world_size", [1, 2])
def test_weights_that_are_no_numbers_are_never_committed(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int
) -> None:
    overrides = ("objective=outside_objectives:Poisoned", "epochs=1", "checkpoint.every_steps=1")
    with pytest.raises(WorkerError) as caught:
        gloo_workers.run(world_size, run, str(tmp_path), *overrides)
    assert caught.value.kind == "FloatingPointError"
    newest = checkpoint.newest(tmp_path / "checkpoints", print)
    assert newest == tmp_path / "checkpoints" / "step-3"
    assert all(t.isfinite().all() for t in load_file(newest / checkpoint.TENSORS).values())
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_fails_if_a_frozen_part_moved(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int
) -> None:
    with pytest.raises(WorkerError, match=r"frozen tensors changed: features\.0\.weight") as caught:
        gloo_workers.run(
            world_size, run, str(tmp_path), "objective=outside_objectives:MovesFrozen", "epochs=1"
        )
    assert caught.value.kind == "RuntimeError"
    assert not (tmp_path / "summary.json").exists()


def run_with_data_of_its_own(folder: str) -> dict[str, Any]:
    return run(folder, f"data.max_train={20 + int(os.environ['RANK'])}")


def test_processes_that_see_different_images_do_not_train(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    with pytest.raises(WorkerError, match="see different images") as caught:
        gloo_workers.run(2, run_with_data_of_its_own, str(tmp_path / "run"))
    assert caught.value.kind == "UserError"
    assert not (tmp_path / "run").exists()


def run_with_a_mistake_on_rank_1(folder: str) -> dict[str, Any]:
    root = "/nowhere" if os.environ["RANK"] == "1" else folder
    return run(f"{folder}/run", "data.source=folder", f"data.root={root}")


def test_a_mistake_that_one_process_sees_ends_all_of_them(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name / "0.png")
    with pytest.raises(WorkerError, match="/nowhere does not exist") as caught:
        gloo_workers.run(2, run_with_a_mistake_on_rank_1, str(tmp_path))
    assert caught.value.kind == "UserError"


def cut_off_then_resume(folder: str, step: int, *overrides: str) -> None:
    """Run to the end, take back what came after a step, and run again."""
    run(folder, *overrides)
    for path in (Path(folder) / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    (Path(folder) / "summary.json").unlink()
    from tl.engine import runtime

    runtime.stop()
    run(folder, *overrides, resume="auto")


def test_an_objectives_own_state_goes_on_bit_for_bit(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    overrides = (
        "objective=outside_objectives:PullToStart",
        "epochs=2",
        "checkpoint.every_steps=1",
        "checkpoint.keep=99",
    )
    gloo_workers.run(1, run, str(tmp_path / "whole"), *overrides)
    gloo_workers.run(1, cut_off_then_resume, str(tmp_path / "cut"), 5, *overrides)
    for name in ("step-7",):
        ours, theirs = (
            load_file(tmp_path / run / "checkpoints" / name / checkpoint.TENSORS)
            for run in ("cut", "whole")
        )
        assert "objective/start" in theirs
        assert "objective/strength" in theirs
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def resume(folder: str, *overrides: str) -> dict[str, Any]:
    return run(folder, *overrides, resume="auto")


def test_the_best_model_is_made_up_if_the_run_died_before_it_was_written(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    gloo_workers.run(1, run, str(tmp_path), "epochs=1")
    before = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "summary.json").unlink()
    gloo_workers.run(1, resume, str(tmp_path), "epochs=1")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_images_are_refused_on_resume(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    gloo_workers.run(1, run, str(tmp_path), "epochs=1")
    (tmp_path / "summary.json").unlink()
    config = tmp_path / run_dir.CONFIG
    config.write_text(config.read_text().replace("max_train: 26", "max_train: 27"))
    with pytest.raises(WorkerError, match="not those it began with"):
        gloo_workers.run(1, resume, str(tmp_path), "epochs=1", "data.max_train=27")
