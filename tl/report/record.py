"""What a run's folder says of the run: read as it is, whatever of it is there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from tl import yaml12
from tl.atomic import from_json
from tl.config import Training
from tl.errors import UserError
from tl.report import kept
from tl.report.kept import Validation
from tl.report.times import Times
from tl.tracking import jsonl
from tl.tracking.status import read_status
from tl.tracking.tracker import CONFIG, SUMMARY

AUGMENTS = get_args(Training.model_fields["augment"].annotation)
Line = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A run, as its folder has it."""

    run_dir: Path
    config: dict[str, Any]
    status: dict[str, Any]
    summary: dict[str, Any]
    """empty if the run is not done"""
    lines: list[Line]
    """of metrics.jsonl"""
    facts: dict[str, Any]
    """``report/run.json``; empty for a run that has none"""
    times: Times
    validation: Validation | None
    missing: list[str] = field(default_factory=list)
    """what there is not, and why, each a sentence"""

    @property
    def name(self) -> str:
        return self.run_dir.resolve().name or str(self.run_dir)

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.facts.get("classes", [])]

    @property
    def phases(self) -> list[dict[str, Any]]:
        return self.facts.get("phases", [])

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def metric(self) -> str:
        """By which the best evaluation was chosen."""
        chosen = self.config.get("best", {})
        name = chosen.get("metric", "auto") if isinstance(chosen, dict) else "auto"
        if self.summary.get("best_metric"):
            return str(self.summary["best_metric"])
        if name != "auto":
            return str(name)
        return "target/im" if self.facts.get("target") else "val/accuracy"

    @property
    def evaluations(self) -> list[Line]:
        """Lines of evaluations."""
        return [line for line in self.lines if self.metric in line]

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the best evaluation, ``step`` among them; empty if there is none."""
        if self.summary:
            found = {k: v for k, v in self.summary.items() if "/" in k and is_number(v)}
            found = {k: v for k, v in found.items() if not k.startswith("last/")}
            return found | {"step": self.summary.get("best_step", 0)}
        lines = [line for line in self.evaluations if is_number(line[self.metric])]
        if not lines:
            return {}
        low = self.metric in ("val/loss", "target/entropy")
        sign = -1 if low else 1
        # Of equal ones that of lower loss, then the earlier one, as in tl.selection.
        best = max(
            lines, key=lambda one: (sign * one[self.metric], -(one.get("val/loss") or math.inf))
        )
        return {k: v for k, v in best.items() if is_number(v)}

    @property
    def last(self) -> dict[str, float]:
        """The metrics of the last evaluation."""
        lines = self.evaluations
        return {k: v for k, v in lines[-1].items() if is_number(v)} if lines else {}

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, where it is a number."""
        return [(line["step"], line[metric]) for line in self.lines if is_number(line.get(metric))]

    @property
    def steps(self) -> int:
        return max((line["step"] for line in self.lines), default=0)

    @property
    def seconds(self) -> float | None:
        """From start to end; while it is not done, from its first line of metrics to the last."""
        if is_number(self.summary.get("wall_seconds")):
            return float(self.summary["wall_seconds"])
        times = [line["time"] for line in self.lines if is_number(line.get("time"))]
        return times[-1] - times[0] if len(times) > 1 else None


def is_number(value: object) -> bool:
    """A finite one; not yes or no."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(run_dir: Path) -> Record:
    """The record of a run.

    Raises:
        UserError: there is no run, or a file of it holds what no run writes.
    """
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{run_dir} is no folder of a run: it has no {CONFIG}")
    try:
        text = (run_dir / CONFIG).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir / CONFIG} cannot be read: {error}") from None
    config, _ = yaml12.load(text, str(run_dir / CONFIG))
    missing = []
    facts = _checked(kept.read_json(run_dir, kept.RUN))
    if not facts:
        missing.append(
            f"{kept.FOLDER}/{kept.RUN}: the freeze plan, the classes' names and the versions. "
            "The run is older than reports are, or had tracking.report=false"
        )
    validation = None
    try:
        validation = kept.read_validation(run_dir, len(facts["classes"])) if facts else None
    except UserError as error:  # the rest can be shown
        missing.append(str(error))
    if validation is None and facts and facts["val_images"] and not missing:
        missing.append(
            f"{kept.FOLDER}/{kept.VALIDATION}: the predictions of the best model, from which "
            "the confusion matrix, the table of the classes, calibration and mistakes are made. "
            "No evaluation was finished, or the run kept none"
        )
    lines = jsonl.read(run_dir / jsonl.FILE)
    if not lines:
        missing.append(f"{jsonl.FILE}: no step has been logged, so there are no curves")
    record = Record(
        run_dir=run_dir,
        config=config if isinstance(config, dict) else {},
        status=read_status(run_dir) or {},
        summary=_json(run_dir / SUMMARY),
        lines=lines,
        facts=facts,
        times=Times.of_dict(kept.read_json(run_dir, kept.TIMES)),
        validation=validation,
        missing=missing,
    )
    if validation and record.best and validation.step != record.best["step"]:
        missing.append(
            f"the predictions of step {record.best['step']:.0f}, the best: there are those of step "
            f"{validation.step}"
        )
    return record


def _json(path: Path) -> dict[str, Any]:
    try:
        found = from_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
    """What `tl.engine.reporting.facts` wrote, or nothing if it is something else."""
    try:
        for phase in facts.get("phases", []):
            for key in ("first_step", "steps_of_it", "first_epoch", "steps_per_epoch"):
                kept.expect(is_number(phase[key]), key)
            kept.expect(isinstance(phase["name"], str) and isinstance(phase["train"], str), "name")
            kept.expect(phase["augment"] in AUGMENTS, "augment")
            shares = phase["crop_scale"]
            kept.expect(len(shares) == 2 and all(map(is_number, shares)), "crop_scale")
            kept.expect(phase["views"] is None or phase["views"] > 0, "views")
            for row in phase["stages"]:
                sizes = (row["parameters"], row["trainable"])
                kept.expect(all(is_number(n) and n >= 0 for n in sizes), "parameters")
                kept.expect(isinstance(row["stage"], str) and isinstance(row["lr"], str), "stage")
        kept.expect(not facts or isinstance(facts["classes"], list), "classes")
        kept.expect(not facts or is_number(facts["val_images"]), "val_images")
        kept.expect(isinstance(facts.get("versions", {}), Mapping), "versions")
        kept.expect(isinstance(facts.get("target"), Mapping | None), "target")
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return facts
