"""Runs on the GPU are right: against each other, where two ways lead to the same.

python benchmarks/workers/gpu_correct.py without-compile|compile DATA FOLDER tiny|whole
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from gpu_part import Told, a_run, cuda, difference, guarded, losses, record

from launch import evaluate, predict
from tl.data.transforms import normalise
from tl.engine import loop, phase_data, runtime, stop_requests
from tl.errors import Preempted
from tl.models.dropout import Draws, image_keys
from tl.models.preprocessing import preprocessing_of

FLOAT32 = ("mixed_precision=no", "tf32=false")
FEW = ("data.max_train=256", "data.max_val=64", "global_batch_size=32", "tracking.log_every=1")
TINY = ("data.max_train=24", "data.max_val=8", "global_batch_size=8", "tracking.log_every=1")
Values = dict[str, Any]


def main() -> None:
    told = Told.by_command_line()
    few = (*(TINY if told.tiny else FEW), "data.workers=2")
    checks: dict[str, Callable[[], Values]] = {}
    if told.what == "compile":
        checks["compile"] = partial(compiled, told, few)
    else:
        checks["arithmetic"] = arithmetic
        checks["cache, float32"] = partial(cached, told, few, "float32", FLOAT32, 1e-3)
        checks["cache, views"] = partial(
            cached, told, few, "views", (*FLOAT32, "augment=standard", "cache.views=2"), 1e-3
        )
        half = ("mixed_precision=bf16",) if cuda() else FLOAT32  # which a CPU may only emulate
        checks["cache, bf16"] = partial(cached, told, few, "bf16", half, 2e-2)
        checks["stop and resume, float32"] = partial(
            resumed, told, few, "sgd", (*FLOAT32, "strategy=full"), 1e-2
        )
        checks["stop and resume, head"] = partial(
            resumed, told, few, "head", (*FLOAT32, "strategy=head"), 1e-3
        )
        checks["stop and resume, adamw"] = partial(
            resumed,
            told,
            few,
            "adamw",
            (*half, "strategy=full", "optimizer.name=adamw", "optimizer.lr=0.0001"),
            5e-2,
        )
        if cuda():
            scaled = ("mixed_precision=fp16", "strategy=full")
            checks["stop and resume, fp16"] = partial(resumed, told, few, "fp16", scaled, 5e-2)
        checks["gradient accumulation"] = partial(accumulated, told, few)
        checks["batch_norm=sync on one process"] = partial(synced, told, few)
        checks["nonfinite=skip"] = partial(skipped, told, few)
        checks["evaluate and predict"] = partial(used, told)
    for name, check in checks.items():
        guarded(name, check)


def arithmetic() -> Values:
    """Dropout's masks and normalised images are those of the CPU."""
    device = torch.device("cuda" if cuda() else "cpu")
    ids = torch.arange(64)
    masks = []
    for where in (torch.device("cpu"), device):
        draws = Draws()
        draws.keys = image_keys(0, 3, ids.to(where))
        masks.append(draws.keeps(2, torch.Size([64, 33, 5]), 0.3).cpu())
    pixels = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    preprocessing = preprocessing_of("resnet18", None)
    here = normalise(pixels, preprocessing)
    there = normalise(pixels.to(device), preprocessing)
    last = there.is_contiguous(memory_format=torch.channels_last)
    away = (here - there.cpu()).abs().max().item()
    same = bool((masks[0] == masks[1]).all())
    return {
        "right": same and away < 1e-6 and last,
        "same_masks": same,
        "normalised_differ_by": away,
        "channels_last": last,
        "kept": masks[0].float().mean().item(),
    }


def cached(
    told: Told, few: tuple[str, ...], name: str, more: tuple[str, ...], most: float
) -> Values:
    """A head trained on features from the device, from a memory map, and on images."""
    where: list[bool] = []
    original = phase_data.load_or_compute

    def watched(*arguments: Any) -> Any:
        features = original(*arguments)
        where.append(features is not None and features.on_device)
        return features

    no_room: AbstractContextManager = nullcontext()
    if cuda():
        no_room = mock.patch("torch.cuda.mem_get_info", return_value=(0, 0))
    ways: dict[str, tuple[AbstractContextManager, str]] = {
        "device": (nullcontext(), "cache.features=true"),
        "disk": (no_room, "cache.features=true"),
        "images": (nullcontext(), "cache.features=false"),
    }
    got, frozen, places = {}, [], {}
    augment = () if any(word.startswith("augment") for word in more) else ("augment=none",)
    for way, (how, features) in ways.items():
        where.clear()
        with mock.patch.object(phase_data, "load_or_compute", watched), how:
            arguments = (*few, "strategy=head", "epochs=3", *augment, *more, features)
            summary, lines = a_run(told, f"cached-{name}-{way}", *arguments)
        got[way] = losses(lines)
        frozen.append(summary["frozen_unchanged"])
        places[way] = list(where)
    images = difference(got["device"], got["images"])
    disk = difference(got["disk"], got["device"])
    on_device = all(places["device"]) == cuda() and not any(places["disk"])
    return {
        "right": images < most and disk < 1e-5 and all(f is True for f in frozen) and on_device,
        "cache_against_images": images,
        "memory_map_against_device": disk,
        "frozen_unchanged": frozen,
        "on_device": places,
        "losses": got["device"][:3],
    }


def resumed(
    told: Told, few: tuple[str, ...], name: str, more: tuple[str, ...], most: float
) -> Values:
    """A run that a stop file ends in the middle, and that goes on, against one in one go."""
    arguments = (*few, "steps=16", "optimizer.lr=0.001", "augment=standard", *more)
    whole = losses(a_run(told, f"whole-{name}", *arguments)[1])
    calls, original = 0, loop.set_lr

    def counted(*values: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 5:
            (told.folder / f"stopped-{name}" / "stop").touch()
        return original(*values)

    stopped = ""
    with (
        mock.patch.object(loop, "set_lr", counted),
        mock.patch.object(stop_requests, "SECONDS_BETWEEN_LOOKS_FOR_THE_FILE", 0.0),
    ):
        try:
            a_run(told, f"stopped-{name}", *arguments)
        except Preempted as why:
            stopped = str(why)
        finally:
            runtime.stop()
    before = len(losses(record(told, f"stopped-{name}")))
    states = sorted((told.folder / f"stopped-{name}" / "checkpoints").glob("step-*/state.json"))
    scaler = json.loads(states[-1].read_text())["scaler"]
    summary, lines = a_run(told, f"stopped-{name}", *arguments, resume="auto")
    away = difference(losses(lines), whole)
    finite = all(math.isfinite(loss) for loss in losses(lines))
    right = bool(stopped) and before < len(whole) and away < most and finite
    return {
        "right": right and summary["left_out_steps"] == 0,
        "stopped": stopped[:100],
        "steps_before": before,
        "differ_by": away,
        "scaler": scaler,
        "losses": [whole[0], whole[-1], losses(lines)[-1]],
    }


def two_ways(
    told: Told, few: tuple[str, ...], name: str, one: tuple[str, ...], other: tuple[str, ...]
) -> Values:
    """Two runs whose losses are to be the same."""
    both = [
        losses(a_run(told, f"{name}-{i}", *few, "strategy=full", "optimizer.lr=0.001", *more)[1])
        for i, more in enumerate((one, other))
    ]
    away = difference(*both)
    return {"right": away < 1e-2, "differ_by": away, "losses": [both[0][-1], both[1][-1]]}


def accumulated(told: Told, few: tuple[str, ...]) -> Values:
    """A step in 4 micro-batches and in one, of a network without BatchNorm, with dropout."""
    same = (*FLOAT32, "model.name=squeezenet1_1", "steps=8")
    accumulating = (*same, "gradient_accumulation=4")
    return two_ways(told, few, "accumulated", accumulating, same)


def synced(told: Told, few: tuple[str, ...]) -> Values:
    """batch_norm=sync is the network's own BatchNorm on one process."""
    same = (*FLOAT32, "model.name=resnet18", "steps=6")
    return two_ways(told, few, "synced", (*same, "batch_norm=sync"), same)


def compiled(told: Told, few: tuple[str, ...]) -> Values:
    """Compiled or not, with dropout."""
    if told.tiny:
        few = (*few, "data.max_train=8", "global_batch_size=4")
    same = (*FLOAT32, "model.name=squeezenet1_1", "steps=" + ("2" if told.tiny else "8"))
    return two_ways(told, few, "compiled", (*same, "compile=true"), same)


def skipped(told: Told, few: tuple[str, ...]) -> Values:
    """Steps with a loss that is not finite are left out; those after them move the weights."""
    calls, original = 0, loop.to_network

    def poisoned(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        batch = original(*arguments)
        if calls in (3, 4):
            batch["image"] = batch["image"] * float("nan")
        return batch

    arguments = (*few, *FLOAT32, "strategy=full", "steps=8", "nonfinite=skip(3)")
    arguments = (*arguments, "batch_norm=frozen", "model.name=squeezenet1_1")
    with mock.patch.object(loop, "to_network", poisoned):
        summary, lines = a_run(told, "skipped", *arguments, "optimizer.lr=0.001")
    got = [line.get("train/loss") for line in lines if "train/loss" in line]
    right = summary["left_out_steps"] == 2 and math.isfinite(got[-1])
    return {"right": right, "left_out": summary["left_out_steps"], "losses": got}


def used(told: Told) -> Values:
    """The trained model, with the commands that use one."""
    model, report, rows = (
        told.folder / "whole-sgd",
        told.folder / "report",
        told.folder / "rows.csv",
    )
    codes = [evaluate.main([str(model), "--output", str(report)])]
    runtime.stop()
    codes.append(predict.main([str(model), str(told.data / "val"), "--output", str(rows)]))
    runtime.stop()
    evaluated = json.loads((report / "evaluation.json").read_text())
    summary = json.loads((model / "summary.json").read_text())
    with rows.open(newline="") as file:
        predicted = list(csv.DictReader(file))
    images = sum(1 for _ in (told.data / "val").glob("*/*"))
    away = abs(evaluated["accuracy"] - summary["val/accuracy"]) * evaluated["images"]
    return {
        "right": codes == [0, 0] and len(predicted) == images and away < 1.5,
        "codes": codes,
        "accuracy": [evaluated["accuracy"], summary["val/accuracy"]],
        "loss": [evaluated["loss"], summary["val/loss"]],
        "rows": len(predicted),
        "row": predicted[0],
    }


if __name__ == "__main__":
    main()
