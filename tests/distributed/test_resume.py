"""Promise 4: a run that was cut off goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers, WorkerError
from safetensors.torch import load_file

from tl.arguments import load
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

PHASES = (
    "phases=[{name: probe, train: head, epochs: 1, optimizer: {lr: 0.05}},"
    " {name: tune, train: last_stages(3), epochs: 2, optimizer: {name: adamw, lr: 1e-4}}]"
)
COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=26",
    "data.max_val=11",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=8",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl]",
    "data.workers=0",
    PHASES,
]
STEPS = 4 + 2 * 4


def run(run_dir: str, resume: str, *overrides: str) -> dict[str, Any]:
    loaded = load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={})
    return engine_run.run(loaded, resume=resume)


def run_and_listen(run_dir: str, resume: str, *overrides: str) -> tuple[dict[str, Any], str]:
    """The summary, and what was said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        summary = run(run_dir, resume, *overrides)
    return summary, said.getvalue()


def cut_off(folder: Path, copy: Path, step: int) -> None:
    """What a run leaves that died just after it had committed the checkpoint of ``step``."""
    shutil.copytree(folder, copy)
    for later in (copy / "checkpoints").iterdir():
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    (copy / "summary.json").unlink()


def _weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / which / "model.safetensors")


@pytest.fixture(scope="module")
def whole_run(gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    gloo_workers.run(1, run, str(folder), "never", "checkpoint.every_steps=1")
    return folder


def test_a_checkpoint_is_committed_at_every_step_asked_for(whole_run: Path) -> None:
    names = {path.name for path in (whole_run / "checkpoints").iterdir()}
    assert names == {f"step-{step}" for step in range(1, STEPS + 1)}


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one_bit_for_bit(
    gloo_workers: GlooWorkers, whole_run: Path, tmp_path: Path, step: int
) -> None:
    """From every step: within an epoch, at its end, within a phase and at its end."""
    folder = tmp_path / "run"
    cut_off(whole_run, folder, step)
    gloo_workers.run(1, run, str(folder), "auto", "checkpoint.every_steps=1")
    for which in ("last", "model"):
        ours, theirs = _weights(folder, which), _weights(whole_run, which)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), (which, name)


def _timeless(folder: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    lines = read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def test_the_record_of_a_resumed_run_is_that_of_an_uninterrupted_one(
    gloo_workers: GlooWorkers, whole_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    cut_off(whole_run, folder, 6)
    gloo_workers.run(1, run, str(folder), "auto", "checkpoint.every_steps=1")
    assert _timeless(folder) == _timeless(whole_run)
    assert (folder / "run_id").read_text() == (whole_run / "run_id").read_text()


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_run_goes_on_with_another_number_of_processes(
    gloo_workers: GlooWorkers, whole_run: Path, tmp_path: Path, world_size: int
) -> None:
    folder = tmp_path / "run"
    cut_off(whole_run, folder, 6)
    gloo_workers.run(world_size, run, str(folder), "auto", "checkpoint.every_steps=1")
    for mine, theirs in zip(_timeless(folder), _timeless(whole_run), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            # Float32 sums in another order, over six steps.
            assert mine[key] == (pytest.approx(value, rel=1e-3) if "loss" in key else value)


def test_the_newest_whole_checkpoint_is_taken(
    gloo_workers: GlooWorkers, whole_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    cut_off(whole_run, folder, 7)
    (folder / "checkpoints" / "step-7" / "tensors.safetensors").write_bytes(b"")
    gloo_workers.run(1, run, str(folder), "auto", "checkpoint.every_steps=1")
    ours, theirs = _weights(folder), _weights(whole_run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_config_is_refused_with_what_differs(
    gloo_workers: GlooWorkers, whole_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    cut_off(whole_run, folder, 6)
    with pytest.raises(WorkerError) as caught:
        gloo_workers.run(1, run, str(folder), "auto", "seed=3")
    assert caught.value.kind == "UserError"
    assert "seed: 0 before, 3 now" in caught.value.message
    assert (folder / "config.yaml").read_text() == (whole_run / "config.yaml").read_text()


def test_a_change_that_may_be_is_taken_said_and_kept(
    gloo_workers: GlooWorkers, whole_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    cut_off(whole_run, folder, 6)
    change = "phases.1.optimizer.lr=0.002"
    [(summary, said)] = gloo_workers.run(1, run_and_listen, str(folder), "auto", change)
    assert "CHANGED: phases.1.optimizer.lr: 0.0001 before, 0.002 now" in said
    assert summary["changes"] == ["after step 6: phases.1.optimizer.lr: 0.0001 before, 0.002 now"]
    rates = {line["step"]: line["lr"] for line in read(folder / "metrics.jsonl") if "lr" in line}
    # Cosine over eight steps, of which two and three are done.
    assert rates[8] == pytest.approx(0.002 * (1 + math.cos(math.pi * 3 / 8)) / 2)
    assert load(folder / "config.yaml", environ={}).phases[1].optimizer.lr == 0.002


def test_a_phase_cannot_be_made_shorter_than_it_has_run(
    gloo_workers: GlooWorkers, whole_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    cut_off(whole_run, folder, 10)
    with pytest.raises(WorkerError, match="phase tune has 4 steps now, and 6 are done"):
        gloo_workers.run(1, run, str(folder), "auto", "phases.1.epochs=1")


def test_a_phase_that_is_made_as_short_as_it_has_run_is_over(
    gloo_workers: GlooWorkers, whole_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    cut_off(whole_run, folder, 8)
    [summary] = gloo_workers.run(1, run, str(folder), "auto", "phases.1.epochs=1")
    assert summary["steps"] == 8
    before, after = (load_file(f / "checkpoints" / "step-8" / "tensors.safetensors")
                     for f in (whole_run, folder))  # fmt: skip
    last = _weights(folder)
    assert all(torch.equal(before[f"network/{name}"], last[name]) for name in last)
    assert not any(name.startswith("optimizer/") for name in after)


def test_a_run_dir_of_another_run_is_refused_and_stays_as_it_is(
    gloo_workers: GlooWorkers, whole_run: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    with pytest.raises(WorkerError, match="holds another run"):
        gloo_workers.run(1, run, str(whole_run), "never")
    assert before == {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}


def test_a_run_that_is_done_is_not_done_again(gloo_workers: GlooWorkers, whole_run: Path) -> None:
    before = (whole_run / "metrics.jsonl").read_bytes()
    [summary] = gloo_workers.run(1, run, str(whole_run), "auto", "checkpoint.every_steps=1")
    assert summary["steps"] == STEPS
    assert (whole_run / "metrics.jsonl").read_bytes() == before
