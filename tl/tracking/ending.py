"""What a person reads when a run is done: how good, how long, where it is and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from rich.table import Table

from tl.errors import printable
from tl.tracking.plan import PhasePlan, place_after
from tl.tracking.progress_line import duration, name_of, names_shown
from tl.tracking.tables import table
from tl.tracking.tracker import REPORT


def results(summary: dict[str, Any], phases: Sequence[PhasePlan]) -> Table:
    """The best evaluation and the last one, by the metrics that people look at."""
    chosen = summary["best_metric"]
    metrics = [key for key in names_shown(chosen) if f"last/{key}" in summary]
    metrics.sort(key=lambda key: key != chosen)

    def row(name: str, step: int, prefix: str) -> list[Any]:
        # The step of an evaluation is done: it is the one after those before it.
        here = place_after(phases, max(step - 1, 0))
        place = [step, here.epoch, phases[here.index].name]
        return [name, *place, *(float(summary[prefix + key]) for key in metrics)]

    return table(
        "",
        ["", "step", "epoch", "phase", *map(name_of, metrics)],
        [row("best", summary["best_step"], ""), row("last", summary["steps"], "last/")],
    )


def facts(summary: dict[str, Any], folder: Path, link: str) -> str:
    """Everything else, a line each. A long path is not broken, so that it can be copied.

    Args:
        link: to the run in Weights & Biases, if it is there.
    """
    where = _short(folder)
    frozen = ""
    if summary["frozen_parameters"]:
        frozen = f"; {summary['frozen_parameters']:,} frozen, unchanged"
    elif summary["frozen_unchanged"]:
        frozen = "; what a phase froze did not change in it"
    wall, training = duration(summary["wall_seconds"]), duration(summary["training_seconds"])
    lines = [
        ("time", f"{wall}, of which training {training}"),
        ("speed", f"{summary['images_per_second']:,.1f} images/s in training"),
        ("trained", f"{summary['trainable_parameters']:,} parameters{frozen}"),
    ]
    for stop in summary["early_stops"]:
        what = f"phase {stop['phase']} ended early, after step {stop['step']}"
        lines.append(("early", f"{what}: {stop['why']}"))
    lines.append(("model", f"{where / 'model'}"))
    if (folder / REPORT).is_file():
        lines.append(("report", f"{where / REPORT}"))
    if link:
        lines.append(("W&B", link))
    command = quote(str(where))
    lines += [("next", f"tl evaluate {command}"), ("", f"tl predict {command} IMAGES")]
    return "\n".join(f"  {name:13}{printable(value)}" for name, value in lines)


def _short(folder: Path) -> Path:
    """As it is called from here, if it is below."""
    try:
        return folder.relative_to(Path.cwd())
    except (ValueError, OSError):  # it is elsewhere; here has been deleted
        return folder
