"""Promises 2 and 3: every sample counts once, on 1, 2, 3 and 4 processes alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers
from safetensors.torch import load_file

from tl.arguments import load
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

# Sums in another order. Training everything amplifies the difference over the steps below.
FLOAT64_TOLERANCE, FULL_TOLERANCE = 1e-10, 2e-3

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


FLOAT64 = "objective=outside_objectives:Float64"


def run(run_dir: str, *overrides: str) -> dict[str, Any]:
    if FLOAT64 in overrides:
        torch.set_default_dtype(torch.float64)
    try:
        return engine_run.run(load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={}))
    finally:
        torch.set_default_dtype(torch.float32)


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


@pytest.mark.parametrize(
    "images", [13, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 53))]
)
def test_head_training_is_the_same_on_1_2_3_and_4_processes(
    gloo_workers: GlooWorkers, tmp_path: Path, images: int
) -> None:
    """BatchNorm is frozen, dropout is on (MobileNet's head has it), augmentation too.

    In float64: of random weights' logits two may be so close that float32 decides which is larger
    by the order of its sums, and the accuracy of a step with it.
    """
    overrides = (
        FLOAT64,
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
        _assert_same(_records(tmp_path / str(world_size)), reference, FLOAT64_TOLERANCE)


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
        2, run, str(tmp_path), "model.name=squeezenet1_1", "data.max_train=13", "data.max_val=53",
        "strategy=head",
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("phases", "frozen"),
    [
        ("[{name: b, train: bias}, {name: h, train: head}]", True),
        ("[{name: h, train: head}, {name: f, train: full}]", True),
        ("[{name: f, train: full}]", None),
    ],
)
def test_what_any_phase_trained_counts_as_trained_and_frozen_is_said_if_something_was(
    gloo_workers: GlooWorkers, tmp_path: Path, phases: str, frozen: bool | None
) -> None:
    overrides = ("model.name=squeezenet1_1", "data.max_train=2", "data.max_val=2", "epochs=1")
    [summary] = gloo_workers.run(1, run, str(tmp_path), f"phases={phases}", *overrides)
    tensors = load_file(tmp_path / "last" / "model.safetensors")
    head = "classifier.1."
    trained = {
        name for name in tensors
        if "full" in phases or name.startswith(head) or name.endswith(".bias")
    }  # fmt: skip
    assert summary["trainable_parameters"] == sum(tensors[name].numel() for name in trained)
    total = summary["trainable_parameters"] + summary["frozen_parameters"]
    assert total == sum(tensor.numel() for tensor in tensors.values())
    assert summary["frozen_unchanged"] is frozen


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
