"""Promise 5: what a frozen prefix makes of an image is computed once, and is the same."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_end_at
from gloo_workers import GlooWorkers
from PIL import Image
from safetensors.torch import load_file

from tl.arguments import load
from tl.data import image_files
from tl.data.features.draft import Draft
from tl.data.features.entry import Block
from tl.data.features.layout import BLOCK
from tl.data.images import Decoded
from tl.engine import run as engine_run
from tl.errors import Preempted
from tl.tracking.jsonl import read

# Sums of float32 in another order: a block of features goes through the network together, and so do
# the images of a batch. The head's training is convex and keeps the difference small.
TOLERANCE = 1e-5

COMMON = [
    "data.source=digits",
    "data.image_size=32",
    f"data.max_train={2 * BLOCK + 9}",
    "data.max_val=35",
    "model.weights=null",
    "model.name=squeezenet1_1",
    "strategy=head",
    "augment=none",
    "global_batch_size=16",
    "epochs=3",
    "optimizer.lr=0.05",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
    "data.workers=0",
]


def run(run_dir: str, cache: str, *overrides: str) -> dict[str, Any]:
    """A run's summary, with what was said and how many images were decoded.

    It goes on where there is a checkpoint.
    """
    arguments = [*COMMON, f"run_dir={run_dir}", f"cache.folder={cache}", *overrides]
    said, decoded = io.StringIO(), []
    read_shrunk = image_files.read_shrunk

    def counted(*given: Any, **named: Any) -> Decoded:
        decoded.append(given[0])
        return read_shrunk(*given, **named)

    image_files.read_shrunk = counted
    try:
        with contextlib.redirect_stdout(said):
            summary = engine_run.run(load(None, arguments, environ={}), resume="auto")
    finally:
        image_files.read_shrunk = read_shrunk
    return {**summary, "said": said.getvalue(), "decoded": len(decoded)}


def preempted(run_dir: str, cache: str, *overrides: str) -> str:
    """What a run says that finds it is to stop as soon as it begins."""
    Path(run_dir).mkdir(exist_ok=True)
    Path(run_dir, "stop").touch()
    try:
        run(run_dir, cache, *overrides)
    except Preempted as stopped:
        return str(stopped)
    raise AssertionError("it was not stopped")


def records(folder: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    return [
        {k: v for k, v in line.items() if k not in timing}
        for line in read(folder / "metrics.jsonl")
    ]


def assert_same_records(ours: Path, reference: Path) -> None:
    lines, expected = records(ours), records(reference)
    assert len(lines) == len(expected)
    for line, theirs in zip(lines, expected, strict=True):
        for key, value in theirs.items():
            near = pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE) if "loss" in key else value
            assert line[key] == near, (key, line, theirs)


def assert_same_bits(ours: Path, reference: Path) -> None:
    weights, expected = (load_file(f / "last" / "model.safetensors") for f in (ours, reference))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert records(ours) == records(reference)


def png_folder(root: Path, per_class: int, size: int = 40) -> list[str]:
    """Keys of a run on a folder of noise in two classes."""
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = draw.integers(0, 255, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return ["data.source=folder", f"data.root={root}", "data.max_train=null", "data.max_val=null"]


DROPOUT = ("model.name=mobilenet_v3_small",)
VIEWS = ("augment=standard", "cache.views=2")
UNFREEZING = (
    "strategy=null",
    "phases=[{name: full, train: full, steps: 2}, {name: head, train: head, epochs: 2},"
    " {name: more, train: last_stages(2), epochs: 1}]",
)


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param((), id="plain"),
        pytest.param(VIEWS, id="two views", marks=pytest.mark.slow),
        pytest.param(DROPOUT, id="dropout and BatchNorm", marks=pytest.mark.slow),
        pytest.param(UNFREEZING, id="after training all", marks=pytest.mark.slow),
    ],
)
def test_a_cached_run_is_the_run_that_computes_everything_on_1_to_4_processes(
    gloo_workers: GlooWorkers, tmp_path: Path, recipe: tuple[str, ...]
) -> None:
    """Cold on two processes; then warm on the others, with what the two have computed."""
    folder = png_folder(tmp_path / "data", per_class=BLOCK // 2 + 5)
    without = (*recipe, "cache.features=false")
    gloo_workers.run(1, run, str(tmp_path / "without"), str(tmp_path / "unused"), *folder, *without)
    cache = str(tmp_path / "cache")
    for world_size in (2, 1, 3, 4):
        ours = tmp_path / str(world_size)
        summaries = gloo_workers.run(world_size, run, str(ours), cache, *folder, *recipe)
        assert_same_records(ours, tmp_path / "without")
        said = summaries[0]["said"]
        # Training all of the network is never bit for bit the same, and so is what follows from it.
        warm = world_size != 2 and recipe is not UNFREEZING
        assert ("kept from before" in said) == warm, said
        assert ("computed at" in said) != warm, said


def test_each_image_is_decoded_once_and_by_a_later_run_not_at_all(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    folder = png_folder(tmp_path / "data", per_class=9)
    cache, samples = str(tmp_path / "cache"), 2 * 9
    images = 4 * 9
    folder.append("schedule.name=constant")  # so that a longer run begins like a shorter one
    folder.append("tracking.report=false")  # which shows some of the images
    [cold] = gloo_workers.run(1, run, str(tmp_path / "cold"), cache, *folder, "epochs=5")
    assert images <= cold["decoded"] <= images + samples
    [warm] = gloo_workers.run(1, run, str(tmp_path / "warm"), cache, *folder, "epochs=7")
    assert warm["decoded"] <= samples
    short, long = records(tmp_path / "cold"), records(tmp_path / "warm")
    assert short == long[: len(short)]


def test_views_are_as_many_as_asked_for_and_only_those_that_epochs_reach_are_made(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    keys = ("augment=standard", "cache.views=8", "epochs=2", "data.max_train=20")
    [summary] = gloo_workers.run(1, run, str(tmp_path / "run"), str(cache), *keys)
    assert "8 views" in summary["said"]
    manifests = [json.loads(path.read_text()) for path in cache.glob("features/*/manifest.json")]
    views = sorted(m["about"]["view"] for m in manifests if "view" in m["about"])
    assert views == [0, 1]


def run_alone(run_dirs: list[str], *arguments: str) -> str:
    """What a run says of one process, at the same time as that of another process."""
    rank = int(os.environ["RANK"])
    for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[variable]
    return run(run_dirs[rank], *arguments)["said"]


def test_two_runs_at_once_compute_once(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    """Started together on the same empty cache."""
    folder = png_folder(tmp_path / "data", per_class=3 * BLOCK, size=64)
    keys = [*folder, "data.image_size=96", "epochs=1"]
    run_dirs = [str(tmp_path / name) for name in ("one", "other")]
    said = gloo_workers.run(2, run_alone, run_dirs, str(tmp_path / "cache"), *keys)
    both = "\n".join(said)
    assert both.count("computed at") == 2, both  # for training and for validation images
    assert both.count("made by another run") + both.count("kept from before") == 2, both
    assert records(tmp_path / "one") == records(tmp_path / "other")
    assert not list((tmp_path / "cache" / "features").glob("*.partial"))


def test_a_damaged_entry_is_found_and_made_again(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    gloo_workers.run(2, run, str(tmp_path / "first"), str(cache))
    for data in cache.glob("features/*/features.bin"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 4
        data.write_bytes(content)
    summaries = gloo_workers.run(2, run, str(tmp_path / "second"), str(cache))
    assert summaries[0]["said"].count("damaged, and computed again") == 2
    assert_same_bits(tmp_path / "second", tmp_path / "first")


def test_what_was_computed_before_a_stop_is_not_computed_again(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """The stop comes while the validation images are gone through; a restart goes on there."""
    keys = (f"data.max_val={6 * BLOCK}", "data.val_fraction=0.5")
    cache, cut = str(tmp_path / "cache"), str(tmp_path / "cut")
    said = gloo_workers.run(2, preempted, cut, cache, *keys)
    assert all("stopped after step 0" in message for message in said)
    [draft] = (tmp_path / "cache" / "features").glob("*.partial")
    done = [line for log in draft.glob("*.jsonl") for line in log.read_text().splitlines()]
    assert 0 < len(done) < 6
    before = [json.loads(line) for line in done]
    gloo_workers.run(2, run, cut, cache, *keys)
    gloo_workers.run(2, run, str(tmp_path / "whole"), str(tmp_path / "other"), *keys)
    assert_same_bits(Path(cut), tmp_path / "whole")
    manifests = [
        json.loads(path.read_text())
        for path in (tmp_path / "cache" / "features").glob("*/manifest.json")
    ]
    [of_val] = [m for m in manifests if m["layout"]["rows"] == 6 * BLOCK]
    for record in before:
        assert of_val["blocks"][record["block"]]["sha256"] == record["sha256"]


def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_cut_off(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """In the middle of an epoch, once with the cache and once after it was deleted."""
    cache = tmp_path / "cache"
    keys = (*VIEWS, "checkpoint.every_steps=1", "checkpoint.keep=100")
    gloo_workers.run(1, run, str(tmp_path / "whole"), str(cache), *keys)
    for name, deleted in (("with", False), ("without", True)):
        cut = tmp_path / name
        shutil.copytree(tmp_path / "whole", cut)
        for later in (cut / "checkpoints").iterdir():
            if int(later.name.removeprefix("step-")) > 13:
                shutil.rmtree(later)
        (cut / "summary.json").unlink()
        if deleted:
            shutil.rmtree(cache)
        gloo_workers.run(1, run, str(cut), str(cache), *keys)
        assert_same_bits(cut, tmp_path / "whole")


def test_without_room_a_run_says_so_and_computes_everything(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    gloo_workers.run(
        1, run, str(tmp_path / "without"), str(tmp_path / "unused"), "cache.features=false"
    )
    rooms = {
        "little": ("cache.max_bytes=1000", "cache.max_bytes leaves 1.0 kB"),
        "no folder": (f"cache.folder={tmp_path / 'file'}", "Not a directory"),
    }
    (tmp_path / "file").write_text("")
    for name, (key, reason) in rooms.items():
        ours = tmp_path / name
        summaries = gloo_workers.run(2, run, str(ours), str(tmp_path / "cache"), key)
        assert reason in summaries[0]["said"]
        assert summaries[0]["said"].count("are not kept") >= 2
        assert_same_records(ours, tmp_path / "without")


def run_on_a_full_disk(run_dir: str, cache: str, *overrides: str) -> dict[str, Any]:
    """Nothing of more than 8 MB can be written: training images' features, not checkpoints."""
    with files_end_at(8_000_000):
        return run(run_dir, cache, *overrides)


def run_while_the_disk_gets_full(run_dir: str, cache: str, *overrides: str) -> dict[str, Any]:
    """The last process cannot write its second block."""
    write, calls = Draft.write, []

    def writes_one(self: Draft, *arguments: Any) -> Block:
        calls.append(arguments)
        if len(calls) == 2 and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "features.bin")
        return write(self, *arguments)

    Draft.write = writes_one  # type: ignore[method-assign]
    try:
        return run(run_dir, cache, *overrides)
    finally:
        Draft.write = write  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("function", "keys", "reason"),
    [
        (run_on_a_full_disk, ("data.image_size=128", "epochs=1"), "File too large"),
        pytest.param(
            run_while_the_disk_gets_full,
            (f"data.max_train={4 * BLOCK}",),
            "No space left",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["full", "gets full"],
)
def test_a_full_disk_costs_the_cache_and_not_the_run(
    gloo_workers: GlooWorkers, tmp_path: Path, function: Any, keys: tuple[str, ...], reason: str
) -> None:
    gloo_workers.run(
        1, run, str(tmp_path / "without"), str(tmp_path / "unused"), *keys, "cache.features=false"
    )
    ours = tmp_path / "ours"
    [summary, _] = gloo_workers.run(2, function, str(ours), str(tmp_path / "cache"), *keys)
    assert f"training images are not kept: {reason}" in summary["said"].replace(
        "features.bin: ", ""
    )
    assert_same_records(ours, tmp_path / "without")


@pytest.mark.slow
def test_images_that_cannot_be_decoded_are_left_out_alike(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    folder = png_folder(tmp_path / "data", per_class=BLOCK // 2 + 2)
    for name in ("train/a/3.png", "train/b/0.png", "val/a/1.png"):
        (tmp_path / "data" / name).write_bytes(b"no image")
    keys = (*folder, "data.bad_images=skip")
    gloo_workers.run(
        1, run, str(tmp_path / "without"), str(tmp_path / "unused"), *keys, "cache.features=false"
    )
    cache = str(tmp_path / "cache")
    for name, world_size in (("cold", 2), ("warm", 1), ("warm on 3", 3)):
        [summary, *_] = gloo_workers.run(world_size, run, str(tmp_path / name), cache, *keys)
        assert summary["bad_images"] == 3
        assert_same_records(tmp_path / name, tmp_path / "without")


def test_other_weights_images_or_views_of_them_are_other_features(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def entries() -> int:
        return len(list(cache.glob("features/*/manifest.json")))

    changes: dict[str, tuple[tuple[str, ...], int]] = {
        "first": ((), 2),
        "the same again": ((), 0),
        "another schedule": (("optimizer.lr=0.1", "epochs=1", "global_batch_size=8"), 0),
        "another seed, so other random weights": (("seed=1",), 2),
        "another size": (("data.image_size=40",), 2),
        "fewer images to train on": (("data.max_train=20",), 1),
        "a later cut": (("strategy=last_stages(3)",), 2),
    }
    for i, (what, (keys, new)) in enumerate(changes.items()):
        before = entries()
        gloo_workers.run(1, run, str(tmp_path / str(i)), str(cache), "epochs=1", *keys)
        assert entries() - before == new, what
