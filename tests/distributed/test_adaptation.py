"""Runs that adapt: the same on any number of processes, cached or not, after a stop anywhere."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_workers import GlooWorkers
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from tl.arguments import load
from tl.engine import checkpoint
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

# 21 labelled images to train on: an epoch is 8, 8 and 5, so of 4 processes some have one of the
# last micro-batch and some none. The target's 10 go round several times in a phase.
PHASES = (
    "phases=["
    "{name: head, train: last_stages(2), epochs: 1},"
    "{name: dann, train: last_stages(3), objective: outside_objectives:Blind,"
    " objective_options: {width: 8}, steps: 4},"
    "{name: mcc, train: last_stages(2), objective: mcc, steps: 3},"
    "{name: coral, train: last_stages(2), objective: coral, objective_options: {strength: 10},"
    " steps: 2}]"
)
LENGTHS = (3, 4, 3, 2)
STEPS = sum(LENGTHS)
COMMON = [
    "data.image_size=32",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=8",
    "gradient_accumulation=2",
    "optimizer.lr=1e-2",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
    PHASES,
]
RECIPES = {
    # BatchNorm that trains, over the images of both domains, and features of all images kept.
    "cached": ["model.bottleneck=12", "batch_norm=sync", "augment=flip", "cache.views=2"],
    # Dropout, and another view of each image in each round.
    "images": ["augment=trivial"],
}
# Of float32, whose sums are added in another order, through as many as twelve steps.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Keys of two domains: digits, and others of three classes on a grey ground."""
    root = tmp_path_factory.mktemp("domains")
    found = load_digits()
    places = {
        "source": [i for c in range(3) for i in np.flatnonzero(found.target == c)[:9]],
        "target": [i for c in range(3) for i in np.flatnonzero(found.target == c)[20:24]][:10],
    }
    for domain, chosen in places.items():
        for i in chosen:
            pixels = found.images[i] * (255 / 16)
            if domain == "target":
                pixels = 200 - pixels / 2
            image = Image.fromarray(pixels.astype(np.uint8)).resize((24, 24)).convert("RGB")
            path = root / domain / str(found.target[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return [f"data.source_root={root / 'source'}", f"data.target_root={root / 'target'}"]


def run(run_dir: str, *overrides: str) -> dict[str, Any]:
    """Start a run, or go on with it."""
    cache = f"cache.folder={run_dir}-cache"
    loaded = load(None, [*COMMON, cache, *overrides, f"run_dir={run_dir}"], environ={})
    return engine_run.run(loaded, resume="auto")


@pytest.fixture(scope="module")
def whole(
    gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory, domains: list[str]
) -> dict[tuple[str, int], Path]:
    """Runs of each recipe that were never stopped, on one process and on two."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for recipe, overrides in RECIPES.items():
        for world_size in (1, 2):
            found[recipe, world_size] = folder / f"{recipe}-{world_size}"
            given = (*domains, *overrides)
            gloo_workers.run(world_size, run, str(found[recipe, world_size]), *given)
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    lines = read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def assert_same_records(ours: Path, reference: Path) -> None:
    mine, theirs = records(ours), records(reference)
    assert len(mine) == len(theirs)
    for line, expected in zip(mine, theirs, strict=True):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            exact = isinstance(value, int | str) or key.endswith("accuracy")
            near = value if exact else pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)
            assert line[key] == near, (key, line, expected)


def test_the_run_is_what_the_others_are_compared_with(
    whole: dict[tuple[str, int], Path],
) -> None:
    for recipe in RECIPES:
        lines = records(whole[recipe, 1])
        steps = [line for line in lines if "train/loss" in line]
        assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
        for phase, term in (("dann", "train/dann"), ("mcc", "train/mcc"), ("coral", "train/coral")):
            assert all(line[term] > 0 for line in steps if line["phase"] == phase)
        evaluations = [line for line in lines if "val/loss" in line]
        names = {"val/accuracy", "target/im", "target/snd", "target/entropy", "oracle/accuracy"}
        assert all(names <= line.keys() for line in evaluations)
        summary = json.loads((whole[recipe, 1] / "summary.json").read_text())
        best = max(evaluations, key=lambda line: line["target/im"])
        assert summary["best_metric"] == "target/im"
        assert summary["best_step"] == best["step"]
    kept = list(Path(f"{whole['cached', 1]}-cache", "features").iterdir())
    assert len(kept) > 4


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_and_evaluations_are_the_same_on_1_and_2_processes(
    whole: dict[tuple[str, int], Path], recipe: str
) -> None:
    assert_same_records(whole[recipe, 2], whole[recipe, 1])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cached", "images"])
@pytest.mark.parametrize("world_size", [3, 4])
def test_and_on_3_and_4(
    gloo_workers: GlooWorkers,
    tmp_path: Path,
    domains: list[str],
    whole: dict[tuple[str, int], Path],
    recipe: str,
    world_size: int,
) -> None:
    gloo_workers.run(world_size, run, str(tmp_path / "run"), *domains, *RECIPES[recipe])
    assert_same_records(tmp_path / "run", whole[recipe, 1])


@pytest.mark.parametrize("world_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_cached_features_change_no_loss_and_no_evaluation(
    gloo_workers: GlooWorkers,
    tmp_path: Path,
    domains: list[str],
    whole: dict[tuple[str, int], Path],
    world_size: int,
) -> None:
    given = (*domains, *RECIPES["cached"], "cache.features=false")
    gloo_workers.run(world_size, run, str(tmp_path / "run"), *given)
    assert_same_records(tmp_path / "run", whole["cached", 1])
    assert not Path(f"{tmp_path / 'run'}-cache", "features").exists()


def at_step(whole: Path, folder: Path, step: int) -> Path:
    """What a run that was killed after a step leaves. Features it finds again."""
    shutil.copytree(whole, folder)
    if Path(f"{whole}-cache").exists():
        shutil.copytree(f"{whole}-cache", f"{folder}-cache")
    for name in ("summary.json", "status.json"):
        (folder / name).unlink()
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.partition("-")[2]) > step:
            shutil.rmtree(path)
    return folder


def tensors_at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step}" / checkpoint.TENSORS)


# In the middle of dann, whose discriminator trains; and of an evaluation's step.
IN_SHORT = {("cached", 1, 4), ("images", 2, 5), ("cached", 2, 8)}


@pytest.mark.parametrize(
    ("recipe", "world_size", "step"),
    [
        pytest.param(r, w, s, marks=() if (r, w, s) in IN_SHORT else pytest.mark.slow)
        for r in RECIPES
        for w in (1, 2)
        for s in range(1, STEPS)
        if (r, w, s) in IN_SHORT or (s + w) % 2  # each step once, on one process or on two
    ],
)
def test_a_run_that_goes_on_from_any_step_is_bit_for_bit_the_whole_one(
    gloo_workers: GlooWorkers,
    tmp_path: Path,
    domains: list[str],
    whole: dict[tuple[str, int], Path],
    recipe: str,
    world_size: int,
    step: int,
) -> None:
    reference = whole[recipe, world_size]
    folder = at_step(reference, tmp_path / "run", step)
    gloo_workers.run(world_size, run, str(folder), *domains, *RECIPES[recipe])
    for later in range(step, STEPS + 1):
        mine, theirs = tensors_at(folder, later), tensors_at(reference, later)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), (later, name)
    assert records(folder) == records(reference)


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        pytest.param(r, s, marks=() if (r, s) == ("cached", (4, 9)) else pytest.mark.slow)
        for r in RECIPES
        for s in ((1, 2), (4, 9), (6, 11))
    ],
)
def test_a_run_goes_on_with_other_numbers_of_processes(
    gloo_workers: GlooWorkers,
    tmp_path: Path,
    domains: list[str],
    whole: dict[tuple[str, int], Path],
    recipe: str,
    steps: tuple[int, int],
) -> None:
    """Begun on one, gone on on two after a step, and on three after another."""
    folder = whole[recipe, 1]
    for world_size, step in zip((2, 3), steps, strict=True):
        folder = at_step(folder, tmp_path / str(world_size), step)
        gloo_workers.run(world_size, run, str(folder), *domains, *RECIPES[recipe])
        assert_same_records(folder, whole[recipe, 1])


def test_what_an_adversary_has_learned_is_in_the_checkpoints_within_its_phase(
    whole: dict[tuple[str, int], Path],
) -> None:
    begin = LENGTHS[0]
    for step in range(1, STEPS + 1):
        own = [name for name in tensors_at(whole["images", 1], step) if "adversary" in name]
        assert bool(own) == (begin < step < begin + LENGTHS[1]), step


# ------------------------------------------------------------------------- labels of the target

BLIND = [
    "data.source=outside_sources:two_styles",
    "data.max_train=24",
    "data.max_val=6",
    "best.metric=target/im",
    "phases=[{name: a, train: last_stages(3), epochs: 2}]",
    "augment=flip",
    "early_stopping.patience=2",
]


def run_with_labels(run_dir: str, labels: str, *overrides: str) -> dict[str, Any]:
    os.environ["TEST_LABELS"] = labels
    try:
        return run(run_dir, *BLIND, *overrides)
    finally:
        del os.environ["TEST_LABELS"]


@pytest.mark.parametrize(
    "objective",
    ["dann", *(pytest.param(o, marks=pytest.mark.slow) for o in ("mcc", "coral"))],
)
def test_labels_of_the_target_move_nothing_but_the_oracle(
    gloo_workers: GlooWorkers, tmp_path: Path, objective: str
) -> None:
    """True, shuffled or not there: the weights at the end, and the best, are the same bits."""
    kinds = ("true", "shuffled", "none")
    for labels in kinds:
        arguments = (str(tmp_path / labels), labels, f"objective={objective}")
        gloo_workers.run(1, run_with_labels, *arguments)
    reference = tmp_path / kinds[0]
    oracles = set()
    for labels in kinds:
        for which in ("last", "model"):
            mine, theirs = (
                load_file(folder / which / "model.safetensors")
                for folder in (tmp_path / labels, reference)
            )
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        lines, expected = (
            [{k: v for k, v in line.items() if not k.startswith("oracle/")} for line in of]
            for of in (records(tmp_path / labels), records(reference))
        )
        assert lines == expected
        summary = json.loads((tmp_path / labels / "summary.json").read_text())
        oracles.add(summary.get("oracle/loss"))
    assert len(oracles) == 3
    assert None in oracles


@pytest.mark.slow
def test_fixmatch_trains_on_kept_views_as_on_the_images(
    gloo_workers: GlooWorkers, tmp_path: Path, domains: list[str]
) -> None:
    """The source and the weak view are without augmentation, the strong view has two forms."""
    keys = (
        "phases=[{name: p, train: last_stages(2), objective: fixmatch,"
        " objective_options: {threshold: 0}, steps: 5}]",
        "augment=none",
        "cache.views=2",
        "model.bottleneck=12",
        "batch_norm=sync",
    )
    without = tmp_path / "without"
    gloo_workers.run(1, run, str(without), *domains, *keys, "cache.features=false")
    for world_size in (2, 1):
        gloo_workers.run(world_size, run, str(tmp_path / str(world_size)), *domains, *keys)
        assert_same_records(tmp_path / str(world_size), without)
    # Validation, the source and the target in a plain view each, and two strong views.
    for world_size in (2, 1):
        kept = Path(f"{tmp_path / str(world_size)}-cache", "features").glob("*/manifest.json")
        abouts = [json.loads(path.read_text())["about"] for path in kept]
        assert sorted(about.get("view", -1) for about in abouts) == [-1, -1, -1, 0, 1]
