"""A phase that gets no better ends, at the same step on any number of processes and restarts."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gloo_workers import GlooWorkers
from safetensors.torch import load_file

from tl.arguments import load
from tl.engine import checkpoint
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

# Two steps an epoch. After two epochs the rate of the first phase is too low to move a weight, so
# the evaluations after the third and the fourth are no better, and it ends there, two before its
# time. min_delta is far above what the order of a sum in float32 can change.
PHASES = (
    "phases=[{name: head, train: head, epochs: 6, optimizer: {lr: 0.02},"
    " schedule: {name: step, step_epochs: 2, gamma: 1e-30},"
    " early_stopping: {patience: 2, min_delta: 1e-4}},"
    " {name: top, train: last_stages(2), epochs: 3, optimizer: {name: adamw, lr: 1e-4}}]"
)
COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=11",
    "data.max_val=5",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=6",
    "sampling=weighted(0.5)",
    "data.classes=[0, 1]",
    "data.workers=0",
    "augment=flip",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl, console]",
    "tracking.log_every=1",
    "best.metric=val/loss",
    PHASES,
]
ENDS = 8
STEPS = ENDS + 6


def run(run_dir: str, *overrides: str) -> tuple[dict[str, Any], str]:
    """Start a run, or go on with it: its summary, and what it has said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        loaded = load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={})
        summary = engine_run.run(loaded, resume="auto")
    return summary, said.getvalue()


def lines_of(folder: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    lines = read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def assert_same_lines(ours: Path, reference: Path, rel: float = 1e-5) -> None:
    """Sums of float32 in another order make the difference."""
    for line, expected in zip(lines_of(ours), lines_of(reference), strict=True):
        near = {k: pytest.approx(v, rel=rel) if "loss" in k else v for k, v in expected.items()}
        assert line == near


def cut_off(whole: Path, copy: Path, step: int) -> None:
    """What a run leaves that died just after it had committed the checkpoint of ``step``."""
    shutil.copytree(whole, copy)
    for later in (copy / "checkpoints").iterdir():
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    (copy / "summary.json").unlink()


@pytest.fixture(scope="module")
def whole(gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    [(_, said)] = gloo_workers.run(1, run, str(folder))
    (folder / "said").write_text(said)
    return folder


def test_a_phase_ends_after_as_many_evaluations_without_improvement(whole: Path) -> None:
    lines = lines_of(whole)
    evaluated = [(x["phase"], x["step"], x["epoch"]) for x in lines if "val/accuracy" in x]
    head, top = [(2, 1), (4, 2), (6, 3), (8, 4)], [(10, 5), (12, 6), (14, 7)]
    assert evaluated == [*(("head", *at) for at in head), *(("top", *at) for at in top)]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == STEPS
    losses = {x["step"]: x["val/loss"] for x in lines if "val/loss" in x}
    assert summary["best_step"] == min(losses, key=losses.__getitem__) == STEPS
    why = f"no val/loss better than {losses[4]:.4g} in 2 evaluations"
    assert summary["early_stops"] == [{"phase": "head", "step": ENDS, "why": why}]


def test_it_is_said_and_the_steps_to_come_are_fewer(whole: Path) -> None:
    said = (whole / "said").read_text()
    assert "phase head ends early, after step 8: no val/loss better than" in said
    assert "phase head ended early, after step 8: " in said  # at the end, again
    assert "step 8/18  phase head" in said
    assert "step 10/14  phase top" in said


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=() if step in (ENDS - 1, ENDS) else pytest.mark.slow)
        for step in range(1, STEPS)
    ],
)
def test_a_run_that_goes_on_around_the_end_of_the_phase_is_the_same_bit_for_bit(
    gloo_workers: GlooWorkers, whole: Path, tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "run"
    cut_off(whole, folder, step)
    [(_, said)] = gloo_workers.run(1, run, str(folder))
    assert lines_of(folder) == lines_of(whole)
    assert said.count("step 14/14  phase top") > 0
    for later in range(step, STEPS + 1):
        states = []
        for each in (folder, whole):
            path = each / "checkpoints" / f"step-{later}"
            state = json.loads((path / checkpoint.STATE).read_text())
            states.append({k: v for k, v in state.items() if "seconds" not in k})
            tensors = load_file(path / checkpoint.TENSORS)
            states[-1]["tensors"] = {k: v.numpy().tobytes() for k, v in tensors.items()}
        assert states[0] == states[1], later


def test_it_ends_at_the_same_step_on_1_then_2_then_3_processes(
    gloo_workers: GlooWorkers, whole: Path, tmp_path: Path
) -> None:
    """Changed in the epoch that decides, and right after its evaluation."""
    cut_off(whole, tmp_path / "1", ENDS - 1)
    gloo_workers.run(2, run, str(tmp_path / "1"))
    cut_off(tmp_path / "1", tmp_path / "2", ENDS)
    gloo_workers.run(3, run, str(tmp_path / "2"))
    assert_same_lines(tmp_path / "2", whole)
    summary = json.loads((tmp_path / "2" / "summary.json").read_text())
    assert (summary["steps"], summary["best_step"]) == (STEPS, STEPS)


@pytest.mark.parametrize(
    "world_size", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))]
)
def test_best_step_and_end_are_the_same_on_any_number_of_processes(
    gloo_workers: GlooWorkers, whole: Path, tmp_path: Path, world_size: int
) -> None:
    folder = tmp_path / "run"
    results = gloo_workers.run(world_size, run, str(folder))
    summaries = [summary for summary, _ in results]
    assert all(summary == summaries[0] for summary in summaries)
    expected = json.loads((whole / "summary.json").read_text())
    for key in ("best_step", "val/accuracy", "early_stops", "steps", "images"):
        assert summaries[0][key] == expected[key]
    assert_same_lines(folder, whole)


def test_there_is_an_evaluation_and_a_checkpoint_after_as_many_steps_as_asked_for(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    own = ("checkpoint.every_steps=null", "phases.0.epochs=2", "phases.0.evaluate_every_steps=3",
           "phases.1.epochs=1", "phases.1.evaluate_every_steps=9")  # fmt: skip
    gloo_workers.run(1, run, str(tmp_path / "run"), *own)
    lines = lines_of(tmp_path / "run")
    assert [x["step"] for x in lines if "val/loss" in x] == [3, 4, 6]
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"step-3", "step-4", "step-6"}
