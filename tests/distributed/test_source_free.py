"""SHOT from a run's model alone: no source, any number of processes, going on after any step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_workers import GlooWorkers
from PIL import Image
from safetensors.torch import load_file

from tl.arguments import load
from tl.engine import checkpoint, target_predictions
from tl.engine import run as engine_run
from tl.engine.agreement import Agreement
from tl.errors import Preempted
from tl.tracking.jsonl import read

TARGET, BATCH, EPOCHS = 21, 8, 2
STEPS = EPOCHS * 3
COMMON = [
    "data.image_size=32",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
    f"global_batch_size={BATCH}",
]
SHOT = [
    *COMMON,
    "objective=shot",
    "strategy=freeze_head",
    "batch_norm=sync",
    f"epochs={EPOCHS}",
    "optimizer.lr=1e-3",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
]


def stripes(folder: Path, per_class: int, contrast: float) -> Path:
    draw = np.random.default_rng(per_class)
    for label, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            grey = np.zeros((32, 32))
            if label == 0:
                grey[::4] = 1
            elif label == 1:
                grey[:, ::4] = 1
            noisy = 0.3 + contrast * grey[..., None] + draw.normal(0, 0.1, (32, 32, 3))
            pixels = (255 * noisy.clip(0, 1)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def run(run_dir: str, *overrides: str) -> dict[str, Any]:
    return engine_run.run(load(None, [*overrides, f"run_dir={run_dir}"], environ={}), resume="auto")


@pytest.fixture(scope="module")
def given(
    gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, str]:
    """The folders of the source, of a run that was trained on it, and of the target."""
    folder = tmp_path_factory.mktemp("domains")
    source = stripes(folder / "source", 10, 0.6)
    overrides = (
        f"data.source_root={source}", "model.weights=null", "model.bottleneck=8", "strategy=full",
        "epochs=3", "label_smoothing=0.1", "augment=none",
    )  # fmt: skip
    gloo_workers.run(1, run, str(folder / "trained"), *COMMON, *overrides)
    return str(source), str(folder / "trained"), str(stripes(folder / "target", TARGET // 3, 0.3))


@pytest.fixture(scope="module")
def whole(
    gloo_workers: GlooWorkers,
    given: tuple[str, str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, Path]:
    """Runs of SHOT without the source that were never stopped, on one process and on two."""
    folder = tmp_path_factory.mktemp("shot")
    for world_size in (1, 2):
        gloo_workers.run(world_size, run, str(folder / str(world_size)), *shot(given))
    return {world_size: folder / str(world_size) for world_size in (1, 2)}


def shot(given: tuple[str, str, str]) -> list[str]:
    return [*SHOT, f"model.weights={given[1]}", f"data.target_root={given[2]}"]


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step}" / checkpoint.TENSORS)


def test_a_model_is_adapted_without_its_source_alike_on_1_and_2_processes(
    whole: dict[int, Path],
) -> None:
    one, two = (
        [line for line in read(whole[n] / "metrics.jsonl") if "train/loss" in line] for n in (1, 2)
    )
    assert [line["step"] for line in one] == list(range(1, STEPS + 1))
    for mine, theirs in zip(two, one, strict=True):
        for key in ("train/loss", "train/im", "train/pseudo_labels"):
            # Float32 sums in another order, over six steps of ten layers.
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-3), (key, mine, theirs)
    for step in range(1, STEPS):
        ours, reference = tensors(whole[2], step), tensors(whole[1], step)
        assert torch.equal(ours["objective/labels"], reference["objective/labels"])
        assert ours["objective/labels"].shape == (TARGET,)
        # Computed as an epoch begins, before the checkpoint of that step.
        assert reference["objective/predictions_of"] == step // 3


def test_what_a_run_without_a_source_leaves_has_the_targets_metrics_and_no_others(
    whole: dict[int, Path], given: tuple[str, str, str]
) -> None:
    summary = json.loads((whole[1] / "summary.json").read_text())
    assert summary["best_metric"] == "target/im"
    assert {"target/im", "target/snd", "oracle/accuracy", "last/target/im"} <= summary.keys()
    assert not any(key.startswith(("val/", "last/val/")) for key in summary)
    assert summary["frozen_unchanged"] is True
    lines = read(whole[1] / "metrics.jsonl")
    assert not any(key.startswith("val/") for line in lines for key in line)
    evaluated = [line["target/im"] for line in lines if "target/im" in line]
    assert len(evaluated) == EPOCHS
    assert summary["target/im"] == max(evaluated)
    before, after = (load_file(Path(f, "model", "model.safetensors")) for f in (given[1], whole[1]))
    still = {name for name in before if torch.equal(before[name], after[name])}
    # The bias before a BatchNorm has no gradient.
    assert still == {"reuse_head.weight", "reuse_head.bias", "bottleneck.0.bias"}
    classes = json.loads((whole[1] / "model" / "config.json").read_text())["classes"]
    assert classes == ["a", "b", "c"]


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
        pytest.param(w, s, marks=() if (w, s) in {(1, 4), (2, 3)} else pytest.mark.slow)
        for w in (1, 2)
        for s in range(1, STEPS)
    ],
)
def test_a_run_that_goes_on_from_any_step_is_bit_for_bit_the_whole_one(
    gloo_workers: GlooWorkers,
    tmp_path: Path,
    given: tuple[str, str, str],
    whole: dict[int, Path],
    world_size: int,
    step: int,
) -> None:
    folder = at_step(whole[world_size], tmp_path / "run", step)
    gloo_workers.run(world_size, run, str(folder), *shot(given))
    for later in range(step, STEPS + 1):
        mine, theirs = tensors(folder, later), tensors(whole[world_size], later)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), later


def stopped_while_looking(run_dir: str, *overrides: str) -> str:
    """Stop a run as it looks at the target before its second epoch."""
    agreed = target_predictions.stop_agreed

    def stop(run: Any, doing: str) -> bool:
        if run.progress.step == 3:
            run.stop_requests.reason = "a test"
            agreement: Agreement = run.agreement
            agreement.stop = True
        return agreed(run, doing)

    target_predictions.stop_agreed = stop
    try:
        run(run_dir, *overrides)
    except Preempted as stopped:
        return str(stopped)
    finally:
        target_predictions.stop_agreed = agreed
    raise AssertionError("it was not stopped")


def test_a_stop_while_it_looks_at_the_target_loses_nothing(
    gloo_workers: GlooWorkers, tmp_path: Path, given: tuple[str, str, str], whole: dict[int, Path]
) -> None:
    said = gloo_workers.run(1, stopped_while_looking, str(tmp_path / "run"), *shot(given))
    assert "stopped after step 3, a test" in said[0]
    assert tensors(tmp_path / "run", 3)["objective/predictions_of"] == 0
    gloo_workers.run(1, run, str(tmp_path / "run"), *shot(given))
    mine, theirs = tensors(tmp_path / "run", STEPS), tensors(whole[1], STEPS)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_on_cached_features_of_a_frozen_prefix_it_is_the_same(
    gloo_workers: GlooWorkers, tmp_path: Path, given: tuple[str, str, str]
) -> None:
    losses = []
    for kept in ("true", "false"):
        keys = ["strategy=regex(bottleneck)", "augment=none", f"cache.features={kept}"]
        cache = f"cache.folder={tmp_path / 'cache'}"
        gloo_workers.run(1, run, str(tmp_path / kept), *shot(given), *keys, cache)
        lines = read(tmp_path / kept / "metrics.jsonl")
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert len(losses[0]) == STEPS
    # Float32 sums in another order: features are computed by blocks.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)


def test_source_and_shot_in_one_run_has_metrics_of_both(
    gloo_workers: GlooWorkers, tmp_path: Path, given: tuple[str, str, str]
) -> None:
    phases = (
        "phases=[{name: source, train: full, objective: supervised, label_smoothing: 0.1},"
        "{name: shot, train: freeze_head, objective: shot}]"
    )
    overrides = (
        phases, "epochs=1", "model.weights=null", "model.bottleneck=8",
        f"data.source_root={given[0]}", f"data.target_root={given[2]}",
    )  # fmt: skip
    [summary] = gloo_workers.run(1, run, str(tmp_path / "run"), *COMMON, *overrides)
    assert {"val/accuracy", "target/im", "oracle/accuracy"} <= summary.keys()
    phase_of = {line["phase"] for line in read(tmp_path / "run" / "metrics.jsonl")}
    assert phase_of == {"source", "shot"}
