"""A folder of all that images can be: what is readable is used, the rest is named, and no more."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from gloo_workers import GlooWorkers
from hostile_files import can_be_decoded, hostile_folder
from PIL import Image

from tl.data.images import MAX_PIXELS
from tl.data.sampler import epoch_order
from tl.errors import printable


def memory(what: str) -> int:
    """Bytes: VmRSS is what this process has in memory, VmHWM the most it had."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def call(command: str, arguments: list[str]) -> dict[str, Any]:
    """``launch.COMMAND`` in a worker: how it ended, what it said, trained on and took of memory."""
    import importlib

    from outside_objectives import Remembers

    Remembers.seen.clear()
    out, errors = io.StringIO(), io.StringIO()
    Path("/proc/self/clear_refs").write_text("5")  # the most is what there is now
    before = memory("VmRSS")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = importlib.import_module(f"launch.{command}").main(arguments)
    return {
        "code": code,
        "out": out.getvalue(),
        "errors": errors.getvalue(),
        "seen": list(Remembers.seen),
        "memory": memory("VmHWM") - before,
    }


def names_of_training_images(root: str) -> list[str]:
    from tl.config import DataConfig
    from tl.data.folder import folder

    return list(folder(DataConfig(root=root), 0).train.names)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A folder, and the paths below it of the images that can be decoded and of the others."""
    root = tmp_path_factory.mktemp("hostile")
    paths = hostile_folder(root)
    good = [path for path in paths if can_be_decoded(root / path)]
    bad = sorted(set(paths) - set(good))
    assert len(good) + len(bad) == len(paths) > 350
    assert min(len(good), len(bad)) > 150
    return root, good, bad


def arguments(root: Path, run: Path, *more: str) -> list[str]:
    return ["model.name=squeezenet1_1", "model.weights=null", "data.image_size=32",
            "global_batch_size=50", "epochs=1", "augment=none", "data.workers=0",
            "objective=outside_objectives:Remembers", "tracking.trackers=[jsonl,console]",
            f"data.root={root}", f"run_dir={run}", *more]  # fmt: skip


SKIP = ("data.bad_images=skip", "data.max_bad_images=1000")
# What `tl.data.images` says of PNG, of which the largest image here is one, and the network.
BOUND = 12 * MAX_PIXELS + 2**28


def named_once(root: Path, bad: list[str], text: str) -> bool:
    lines = [line for line in text.splitlines() if line.startswith("left out, cannot be decoded: ")]
    named = sorted(line.partition("decoded: ")[2].partition(": ")[0] for line in lines)
    return named == sorted(printable(str(root / path)) for path in bad)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_trains_on_all_that_can_be_decoded_and_names_all_else(
    gloo_workers: GlooWorkers,
    tmp_path: Path,
    images: tuple[Path, list[str], list[str]],
    world_size: int,
) -> None:
    root, good, bad = images
    run = tmp_path / "run"
    results = gloo_workers.run(world_size, call, "train", arguments(root, run, *SKIP))
    assert [result["code"] for result in results] == [0] * world_size, results[0]["errors"]
    out = results[0]["out"]
    assert named_once(root, bad, out)
    assert "\x1b" not in out
    assert "2 folders are called like an image" in out
    assert "train/b/nothing.jpg" in out
    # Each once, and none in the place of another.
    names = names_of_training_images(str(root))
    trained_on = [names[i] for result in results for i in result["seen"]]
    train = [path for path in good if path.startswith("train/")]
    assert sorted(trained_on) == sorted(train)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["images"] == len(train)
    assert summary["bad_images"] == len(bad)
    assert max(result["memory"] for result in results) < BOUND
    if world_size == 1:
        evaluate_and_predict(gloo_workers, tmp_path, root, good, bad)


def evaluate_and_predict(
    gloo_workers: GlooWorkers, tmp_path: Path, root: Path, good: list[str], bad: list[str]
) -> None:
    """The model of that run, on the same images."""
    run, output = tmp_path / "run", tmp_path / "p.csv"
    options = ["--bad-images", "skip", "data.max_bad_images=1000", "data.workers=0"]
    [result] = gloo_workers.run(1, call, "evaluate", [str(run), str(root / "train"), *options])
    assert result["code"] == 0, result["errors"]
    train = [path for path in bad if path.startswith("train/")]
    assert named_once(root, train, result["out"])
    report = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert sorted(report["bad_images"]) == sorted(path.removeprefix("train/") for path in train)
    assert report["images"] == sum(path.startswith("train/") for path in good)
    assert result["memory"] < BOUND

    options = ["--bad-images", "skip", "--output", str(output), "--workers", "0"]
    [result] = gloo_workers.run(1, call, "predict", [str(run), str(root), *options])
    assert result["code"] == 0, result["errors"]
    assert named_once(root, bad, result["errors"])
    with output.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(str(root / path) for path in good)
    assert result["memory"] < BOUND


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_without_skip_the_first_bad_one_is_named_and_ends_the_command(
    gloo_workers: GlooWorkers,
    tmp_path: Path,
    run_folder: Path,
    images: tuple[Path, list[str], list[str]],
    command: str,
) -> None:
    root, good, bad = images
    run, output, classes = tmp_path / "run", tmp_path / "p.csv", tmp_path / "classes"
    classes.mkdir()
    for ours, theirs in (("a", "ant"), ("b", "bee")):  # the classes of the model
        (classes / theirs).symlink_to(root / "train" / ours)
    asked, order = {
        "train": (arguments(root, run), in_the_order_of_training(root)),
        "evaluate": (
            [str(run_folder), str(classes), "data.workers=0"],
            sorted(good + bad),
        ),  # train/a is "ant"
        "predict": (
            [str(run_folder), str(root), "--output", str(output), "--workers", "0"],
            sorted(good + bad),
        ),
    }[command]
    [result] = gloo_workers.run(1, call, command, asked)
    assert result["code"] == 2, result["errors"]
    assert "Traceback" not in result["errors"]
    said = result["errors"].splitlines()[-1]
    first = next(root / path for path in order if path in bad)
    if command == "evaluate":
        first = classes / "ant" / first.name
    assert said.startswith(printable(f"error: cannot decode {first}: "))
    assert "skip" in said
    assert not output.exists()
    if command == "train":
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["exit_code"]) == ("failed", 2)


def in_the_order_of_training(root: Path) -> list[str]:
    names = names_of_training_images(str(root))
    return [names[i] for i in epoch_order(len(names), 0, 0)]


def test_a_bad_image_is_named_once_as_its_epoch_ends(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """README and ``data.bad_images`` say so: training does not wait for it."""
    root = tmp_path / "data"
    for i in range(12):
        path = root / ("val" if i < 4 else "train") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(path)
    path.write_bytes(b"no image")
    keys = [*SKIP, "epochs=2", "global_batch_size=4", "tracking.log_every=1"]
    [result] = gloo_workers.run(1, call, "train", arguments(root, tmp_path / "run", *keys))
    assert result["code"] == 0, result["errors"]
    lines = result["out"].splitlines()
    [named] = [i for i, line in enumerate(lines) if str(path) in line]
    epochs = [i for i, line in enumerate(lines) if line.startswith("step ") and "val" in line]
    assert len(epochs) == 2
    assert named < epochs[0]
    assert "  epoch 1  " in lines[named - 1]  # after the last step of the epoch
