"""``summary.json``, and what of it a person wants to know at the end."""

from __future__ import annotations

import contextlib
from typing import Any

from tl.engine.state import Run
from tl.errors import UserError
from tl.freezing import trainable_names
from tl.models import saved
from tl.models.lora import num_adapter_parameters
from tl.tracking.ending import facts, results
from tl.tracking.wandb_place import read_place


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


def show_summary(this: Run, summary: dict[str, Any]) -> None:
    """What a person wants to know at the end, and what to do next."""
    link = ""
    with contextlib.suppress(UserError):
        link = read_place(this.run_dir).get("link", "")
    this.console.say(f"done: {summary['steps']:,} steps, {summary['images']:,} images")
    this.console.show(results(summary, this.plan))
    this.console.say(facts(summary, this.run_dir, link))
