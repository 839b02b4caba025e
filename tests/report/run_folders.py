"""Folders as runs leave them, made by hand: of what a test would have to train for long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tl import yaml12
from tl.atomic import to_json, write_json_atomically
from tl.report import kept
from tl.report.seen import Watch

PREPROCESSING = {
    "resize_size": 32,
    "crop_size": 32,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bilinear",
    "antialias": True,
}


def phase(name: str, train: str, first_step: int, steps: int, trained: int) -> dict[str, Any]:
    """A phase of ``report/run.json`` with three stages."""
    return {
        "name": name,
        "train": train,
        "first_epoch": 0,
        "first_step": first_step,
        "steps_of_it": steps,
        "steps_per_epoch": 10,
        "views": None,
        "augment": "flip",
        "crop_scale": [0.08, 1.0],
        "optimizer": {"name": "sgd", "lr": 0.01},
        "stages": [
            {
                "stage": stage,
                "depth": depth,
                "parameters": 1000,
                "batch_norm": "-",
                "trainable": 1000 if depth < trained else 0,
                "lr": "1.00e-02" if depth < trained else "-",
            }
            for depth, stage in ((2, "stem"), (1, "body"), (0, "head"))
        ],
    }


def make_run(
    folder: Path,
    classes: Sequence[str] = ("ant", "bee"),
    names: Sequence[str] | None = None,
    images: int = 60,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    state: str = "done",
    adapts: bool = False,
) -> Path:
    """A run of two phases of ten steps, about two thirds of whose predictions are right.

    One that ``adapts`` to a target has what is known of that without labels, and by them.
    """
    folder.mkdir(parents=True)
    config = {"seed": 0, "model": {"name": "toy"}, "data": {"source": "digits"}, **(config or {})}
    (folder / "config.yaml").write_text(yaml12.dump(config))
    names = names or [f"val/{i}.png" for i in range(images)]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % len(classes)
    logits = torch.randn(images, len(classes), generator=generator)
    logits[torch.arange(images), labels] += 1.5
    called = logits.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels.numpy(), called.numpy()), 1)
    watch = Watch(images, len(classes), torch.device("cpu"))
    watch.add(torch.arange(images), labels, logits, torch.ones(images))
    seen = watch.gather(lambda x: x, lambda x: x)
    accuracy = (called == labels).double().mean().item()
    lines: list[dict[str, Any]] = []
    for step in range(1, 21):
        name = "probe" if step <= 10 else "tune"
        line = {"step": step, "phase": name, "epoch": 1, "time": 1e9 + step}
        lines.append({**line, "train/loss": 2 / step, "lr": 0.01, "images_per_second": 50.0})
        if step % 5 == 0:
            value = accuracy * step / 20
            lines.append({**line, "val/accuracy": value, "val/loss": 1 / step})
            if adapts:
                lines[-2] |= {"train/classification": 1 / step, "train/transfer": 0.5}
                lines[-1] |= {"target/im": step / 20, "target/snd": 2.0, "target/entropy": 0.4}
                lines[-1] |= {"oracle/accuracy": step / 25, "oracle/loss": 1.5}
    (folder / "metrics.jsonl").write_text("".join(to_json(line) + "\n" for line in lines))
    write_json_atomically(folder / "status.json", {"state": state, "step": 20, "message": ""})
    if state == "done":
        summary = {
            "val/accuracy": accuracy, "val/loss": 0.05, "best_metric": "val/accuracy",
            "best_step": 20, "last/val/accuracy": accuracy, "wall_seconds": 61.5, "steps": 20,
            "trainable_parameters": 3000, "frozen_parameters": 0, "images_per_second": 50.0,
        }  # fmt: skip
        if adapts:
            summary |= {"target/im": 1.0, "oracle/accuracy": 0.8, "last/oracle/accuracy": 0.8}
        write_json_atomically(folder / "summary.json", summary)
    facts = {
        "network": "toy", "weights": None, "data": "toys", "classes": list(classes),
        "train_images": 100, "val_images": images, "target": None, "preprocessing": PREPROCESSING,
        "phases": [phase("probe", "head", 0, 10, 1), phase("tune", "full", 10, 10, 3)],
        "total_steps": 20, "processes": 2, "device": "2 processes", "device_kind": "cpu",
        "versions": {"torch": "2"},
    }  # fmt: skip
    kept.write_json(folder, kept.RUN, facts)
    times = {"seconds": {"evaluation": 5.0}, "training": {"probe": 20.0, "tune": 30.0}}
    times |= {"attempts": 1, "memory": [{"rank": 0, "bytes": 2**30}, {"rank": 1, "bytes": 2**29}]}
    kept.write_json(folder, kept.TIMES, times)
    kept.write_validation(folder, 20, confusion, seen, names)
    return folder
