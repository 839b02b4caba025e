"""A network of timm is trained, resumed, evaluated and predicted with like any other."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_workers import GlooWorkers
from PIL import Image
from safetensors.torch import load_file

from launch import evaluate, predict, train
from tl.arguments import load
from tl.engine import run as engine_run
from tl.models import saved

NETWORK = "timm:test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(15):
        part = "val" if i % 5 == 0 else "train"
        path = root / part / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def keys(images: Path, folder: Path) -> list[str]:
    return [
        f"data.root={images}",
        f"run_dir={folder}",
        f"model.name={NETWORK}",
        "model.weights=null",
        "data.image_size=32",
        "data.workers=0",
        "phases=[{name: probe, train: head}, {name: tune, train: last_stages(2)}]",
        "epochs=1",
        "global_batch_size=5",
        "checkpoint.keep=100",
        "checkpoint.every_steps=1",
        "tracking.trackers=[jsonl]",
    ]


def run(resume: str, *overrides: str) -> dict[str, Any]:
    return engine_run.run(load(None, overrides, environ={}), resume=resume)


@pytest.fixture(scope="module")
def run_folder(gloo_workers: GlooWorkers, images: Path, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("run") / "run"
    gloo_workers.run(1, run, "never", *keys(images, folder))
    return folder


def test_training_moves_what_trains_and_nothing_else(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["steps"] == 6
    first, last = (
        load_file(run_folder / "checkpoints" / f"step-{step}" / "tensors.safetensors")
        for step in (1, 6)
    )
    network = saved.load(run_folder).network
    moved = {
        network.stage_of(name.removeprefix("network/"))
        for name, value in first.items()
        if name.startswith("network/") and not torch.equal(value, last[name])
    }
    assert moved == {stage.name for stage in network.stages[-2:]}


def test_a_resumed_run_ends_with_the_same_weights(
    gloo_workers: GlooWorkers, run_folder: Path, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "summary.json").unlink()
    for step in (5, 6):
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    gloo_workers.run(1, run, "auto", *keys(images, folder))
    ours, theirs = (load_file(f / "last" / "model.safetensors") for f in (folder, run_folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_evaluation_and_prediction_agree_with_the_run(
    run_folder: Path, images: Path, tmp_path: Path
) -> None:
    assert evaluate.main([str(run_folder), "--output", str(tmp_path / "out")]) == 0
    evaluated = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    summary = json.loads((run_folder / "summary.json").read_text())
    assert evaluated["loss"] == pytest.approx(summary["val/loss"], rel=1e-5)
    output = tmp_path / "p.csv"
    assert predict.main([str(run_folder), str(images / "val"), "--output", str(output)]) == 0
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["class"] == Path(row["path"]).parent.name for row in rows)
    assert right / len(rows) == pytest.approx(summary["val/accuracy"])


@pytest.mark.parametrize(
    ("name", "installed", "says"),
    [
        (NETWORK, False, "pip install 'transfer-launcher[timm]'"),
        ("timm:resnet10x", True, "Did you mean 'timm:"),
    ],
)
def test_what_cannot_be_built_is_said_before_training(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    installed: bool,
    says: str,
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "timm", None)  # as Python marks what it must not import
    assert train.main([*keys(images, tmp_path / "run"), f"model.name={name}"]) == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
