"""``summary.json``, and what of it a person wants to know at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tl.engine.state import Run
from tl.freezing import trainable_names
from tl.models import saved
from tl.models.lora import num_adapter_parameters
from tl.report.record import FILE as REPORT
from tl.tracking.console import ConsoleTracker


def summarize(this: Run) -> dict[str, Any]:
    """The content of ``summary.json``. A parameter counts as trained if it was in any phase.

    The adapters of each phase count as trained as well, and are no part of the network.
    """
    progress = this.progress
    parameters = dict(this.network.model.named_parameters())
    by_phase = [trainable_names(this.network, phase.train) for phase in this.phases]
    trained = frozenset().union(*by_phase)
    trainable = sum(parameters[name].numel() for name in trained)
    adapters = sum(num_adapter_parameters(this.network, phase.train) for phase in this.phases)
    froze = bool(progress.frozen) or any(len(names) < len(parameters) for names in by_phase)
    digest = saved.sha256(this.run_dir / "model" / "model.safetensors")
    speed = progress.images / progress.training_seconds if progress.training_seconds else 0.0
    first = this.seconds_to_first_step
    return {
        **{key: value for key, value in progress.best.items() if key != "step"},
        "best_metric": this.config.chosen_best.metric,
        "best_step": progress.best["step"],
        **{f"last/{key}": value for key, value in progress.last.items()},
        "steps": progress.step,
        "images": progress.images,
        "num_processes": this.runtime.world_size,
        "wall_seconds": round(progress.wall_seconds, 3),
        # From the command, launcher and imports included; null if there was no step left to train.
        "seconds_to_first_step": None if first is None else round(first, 2),
        "training_seconds": round(progress.training_seconds, 3),
        "images_per_second": round(speed, 2),
        "trainable_parameters": trainable + adapters,
        "frozen_parameters": sum(p.numel() for p in parameters.values()) - trainable,
        # Null where nothing was. Else it is true, or the run had failed: assert_unchanged.
        "frozen_unchanged": True if froze else None,
        "bad_images": len(progress.bad_images),
        "left_out_steps": sum(last - first + 1 for first, last in progress.left_out),
        "early_stops": [
            {key: stop[key] for key in ("phase", "step", "why")} for stop in progress.early_stops
        ],
        "changes": progress.changes,
        "model_sha256": digest,
    }


def show_summary(summary: dict[str, Any], folder: Path, console: ConsoleTracker) -> None:
    """What a person wants to know at the end, and what to do next."""
    metric = summary["best_metric"]
    console.say(f"done: best {metric} {summary[metric]:.4g} at step {summary['best_step']}")
    for key, name in (
        ("val/accuracy", "validation accuracy"),
        ("oracle/accuracy", "accuracy on the target, by its labels,"),
    ):
        if key in summary:
            console.say(f"{name} {summary[key]:.4f} there, {summary['last/' + key]:.4f} at the end")
    for stop in summary["early_stops"]:
        console.say(f"phase {stop['phase']} ended early, after step {stop['step']}: {stop['why']}")
    console.say(
        f"{summary['steps']} steps in {summary['wall_seconds']:.1f} s; "
        f"trained {summary['trainable_parameters']:,} parameters"
        + ("; frozen parts unchanged" if summary["frozen_unchanged"] else "")
    )
    console.say(f"model: {folder / 'model'}")
    if (folder / REPORT).is_file():
        console.say(f"report: {folder / REPORT}")
    console.say(f"use it: tl predict {folder} IMAGE_OR_FOLDER")
