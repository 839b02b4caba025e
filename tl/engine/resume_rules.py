"""What of a config may be another one when a run goes on.

`fatal`: what has been computed would not fit what comes, so the run is not continued. `warned`: it
goes on, and is no longer the run that it would have been. `free`: the result stays the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tl.arguments import Loaded
from tl.errors import UserError
from tl.paths import absolute, is_weights_path

Rule = Literal["fatal", "warned", "free"]

RUN: dict[str, Rule] = {
    "run_dir": "free",
    "seed": "fatal",
    "mixed_precision": "warned",
    "tf32": "warned",
    "compile": "warned",
    "num_processes": "free",
    "threads": "free",
    "time_limit": "free",
    "hang_timeout": "free",
    "nonfinite": "free",
    "disk_errors": "free",
    "best": "warned",
    "data.source": "fatal",
    "data.root": "warned",  # that the images have the same names and labels is checked besides
    "data.source_root": "warned",
    "data.target_root": "warned",
    "data.target_domain": "warned",
    "data.source_domains": "fatal",
    "data.target_labels": "fatal",
    "data.max_target": "fatal",
    "data.val_fraction": "fatal",
    "data.classes": "fatal",
    "data.train_per_class": "fatal",
    "data.max_train": "fatal",
    "data.max_val": "fatal",
    "data.image_size": "fatal",
    "data.extensions": "fatal",
    "data.bad_images": "warned",
    "data.max_bad_images": "free",
    "data.background": "warned",
    "data.decode": "warned",
    "data.channels": "fatal",
    "data.workers": "free",
    "model.name": "fatal",
    "model.weights": "fatal",
    "model.weights_key": "fatal",
    "model.head": "fatal",
    "model.head_classes": "fatal",
    "model.bottleneck": "fatal",
    "model.reuse": "fatal",
    "tracking": "free",
    "checkpoint": "free",
    "cache": "free",
    "cache.views": "warned",
}
PHASE: dict[str, Rule] = {
    "name": "fatal",
    "train": "fatal",
    "epochs": "warned",
    "steps": "warned",
    "global_batch_size": "fatal",
    "gradient_accumulation": "warned",
    "sampling": "fatal",
    "evaluate_every_steps": "warned",
    "early_stopping": "warned",
    "objective": "fatal",
    "objective_options": "warned",
    "label_smoothing": "warned",
    "mixup": "warned",
    "cutmix": "warned",
    "class_weights": "warned",
    "focal": "warned",
    "clip_norm": "warned",
    "ema": "warned",
    "batch_norm": "fatal",
    "optimizer.name": "fatal",
    "optimizer": "warned",
    "schedule": "warned",
    "augment": "warned",
    "crop_scale": "warned",
}
"""Of a phase that goes on or is to come; of one that is over nothing may change."""


def rule_of(key: str, rules: dict[str, Rule]) -> Rule:
    """The rule of a dotted key: its own, or that of the nearest group it is in."""
    while key not in rules:
        key, dot, _ = key.rpartition(".")
        assert dot, "every key has a rule"
    return rules[key]


@dataclass(frozen=True)
class Change:
    """A key with another value than the run began with; None where there was, or is, none."""

    key: str
    before: Any
    now: Any
    rule: Rule

    def __str__(self) -> str:
        free = "" if self.rule != "free" else " (the result stays the same)"
        return f"{self.key}: {json.dumps(self.before)} before, {json.dumps(self.now)} now{free}"


def changes(before: Loaded, now: Loaded, phase: int) -> list[Change]:
    """All that differs between two configs of a run whose phase number ``phase`` goes on.

    What a run computes is compared: its phases with every key filled in stand for the strategy and
    the shared training keys.
    """
    found = []
    rule: Rule
    old, new = (_flat(loaded.config.model_dump(include=_OF_RUN)) for loaded in (before, now))
    for values in (old, new):
        values["run_dir"] = values["run_dir"] and absolute(values["run_dir"], "run_dir")
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            rule = rule_of(key, RUN)
            if key == "model.weights" and all(
                isinstance(value, str) and is_weights_path(value) for value in (old[key], new[key])
            ):
                rule = "warned"  # the file may have been moved; its tensors are in the checkpoint
            found.append(Change(key, old.get(key), new.get(key), rule))
    for i in range(max(len(before.phases), len(now.phases))):
        if i >= min(len(before.phases), len(now.phases)):
            ours, theirs = ([p.name for p in loaded.phases][i:] for loaded in (before, now))
            rule = "fatal" if i <= phase and ours else "warned"
            found.append(Change("phases", ours, theirs, rule))
            break
        old, new = (_flat(loaded.phases[i].model_dump()) for loaded in (before, now))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                rule = "fatal" if i < phase else rule_of(key, PHASE)
                found.append(Change(f"phases.{i}.{key}", old.get(key), new.get(key), rule))
    return found


_OF_RUN = {key.partition(".")[0] for key in RUN}


def refuse_fatal(found: list[Change], folder: Path) -> None:
    """Raise UserError with each change that cannot be, and both values."""
    lines = [f"  {change}" for change in found if change.rule == "fatal"]
    if lines:
        differences = "\n".join(lines)
        raise UserError(
            f"the run in {folder} cannot go on with another config:\n{differences}\n"
            "Undo these changes, or start a new run with another run_dir."
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
