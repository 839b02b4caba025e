"""Runs that sample by class: the same images as the same pixels, however they are carried out."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gloo_workers import GlooWorkers
from PIL import Image

from tl.arguments import load
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

IMAGES = {"many": 9, "few": 2, "some": 4}  # 15 images, in the order few, many, some
COMMON = [
    "data.source=folder",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "data.image_size=32",
    "data.workers=0",
    "strategy=head",
    "epochs=3",
    "global_batch_size=8",
    "gradient_accumulation=2",
    "sampling=balanced",
    "augment=standard",
    "objective=outside_objectives:Eventful",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
]
STEPS = 6


def run(run_dir: str, data: str, *overrides: str) -> dict[str, Any]:
    """Start a run, or go on with it; which images it sees is noted beside it."""
    os.environ["TEST_NOTES"] = run_dir + "-notes"
    Path(run_dir + "-notes").mkdir(exist_ok=True)
    try:
        arguments = [*COMMON, f"data.root={data}", f"run_dir={run_dir}", *overrides]
        return engine_run.run(load(None, arguments, environ={}), resume="auto")
    finally:
        del os.environ["TEST_NOTES"]


def seen_in(run_dir: Path) -> dict[float, dict[str, str]]:
    """For each step its images, as ``id round``, and a hash of what went in."""
    steps: dict[float, dict[str, str]] = {}
    for file in Path(f"{run_dir}-notes").iterdir():
        for line in map(json.loads, file.read_text().splitlines()):
            images = steps.setdefault(line["progress"], {})
            for key, digest in line["seen"].items():
                assert images.setdefault(key, digest) == digest
    return steps


def losses(run_dir: Path) -> list[float]:
    lines = read(run_dir / "metrics.jsonl")
    return [line[key] for line in lines for key in ("train/loss", "val/loss") if key in line]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw, root = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for part in ("train", "val"):
        for name, count in IMAGES.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count if part == "train" else 2):
                pixels = draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return str(root)


@pytest.fixture(scope="module")
def whole(gloo_workers: GlooWorkers, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    gloo_workers.run(1, run, str(folder), data)
    return folder


def test_an_epoch_has_each_class_as_often_and_an_image_each_time_in_another_way(
    whole: Path,
) -> None:
    steps = seen_in(whole)
    assert len(steps) == STEPS
    labels = np.repeat([0, 1, 2], [IMAGES[name] for name in sorted(IMAGES)])
    for epoch in range(3):
        images = [item for half in (0, 1) for item in steps[(2 * epoch + half) / STEPS].items()]
        assert len(images) == sum(IMAGES.values())
        ids = [int(key.split()[0]) for key, _ in images]
        assert Counter(labels[ids].tolist()) == {0: 5, 1: 5, 2: 5}
        assert set(ids) >= {0, 1}  # both of `few`, two and a half times
    everything = [digest for images in steps.values() for digest in images.values()]
    assert len(set(everything)) == len(everything) == 45


@pytest.mark.parametrize(
    "world_size", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))]
)
def test_a_run_is_the_same_on_any_number_of_processes(
    gloo_workers: GlooWorkers, data: str, whole: Path, tmp_path: Path, world_size: int
) -> None:
    gloo_workers.run(world_size, run, str(tmp_path / "run"), data, "data.workers=1")
    assert seen_in(tmp_path / "run") == seen_in(whole)
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize("step", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_goes_on_within_an_epoch_and_at_its_end_on_other_numbers_of_processes(
    gloo_workers: GlooWorkers, data: str, whole: Path, tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "run"
    for world_size, last in ((2, step), (3, step + 2)):
        shutil.copytree(whole if world_size == 2 else folder, tmp_path / f"{world_size}")
        folder = tmp_path / f"{world_size}"
        for later in (folder / "checkpoints").iterdir():
            if int(later.name.removeprefix("step-")) > last:
                shutil.rmtree(later)
        (folder / "summary.json").unlink()
        gloo_workers.run(world_size, run, str(folder), data)
    again = {k: v for k, v in seen_in(whole).items() if k >= step / STEPS}
    assert {**seen_in(tmp_path / "2"), **seen_in(tmp_path / "3")} == again
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-5)


def test_cached_features_are_of_the_view_that_a_round_takes(
    gloo_workers: GlooWorkers, data: str, tmp_path: Path
) -> None:
    own = ("objective=supervised", "cache.views=3", f"cache.folder={tmp_path}/cache")
    gloo_workers.run(1, run, str(tmp_path / "without"), data, *own, "cache.features=false")
    for world_size in (1, 2):
        gloo_workers.run(world_size, run, str(tmp_path / f"{world_size}"), data, *own)
        found, expected = losses(tmp_path / f"{world_size}"), losses(tmp_path / "without")
        # A block of features goes through the network together: sums in another order.
        assert found == pytest.approx(expected, rel=1e-5)
