"""The numbers of a run in W&B's table of runs, while it goes on and afterwards.

wandb itself would show a metric's last value, or each metric's own best one (``val/loss.min`` may
be another checkpoint's than ``val/accuracy.max``), and only of what came since a restart. Here
``val/accuracy`` is always that of the best model, as in summary.json, and ``last/val/accuracy``
that of the last evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tl.config import BestConfig
from tl.selection import is_better
from tl.tracking.wandb_rows import Row

EVALUATIONS = ("val/", "target/", "oracle/")
"""how the names of an evaluation's metrics begin"""


class BestSoFar:
    """Follows the rows of a run, and knows what its summary is by now."""

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        """``chosen``: the config's `best`, its metric spelled out."""
        self._chosen = BestConfig(**chosen)
        self._best: dict[str, float | int] = {}

    def after(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What changes in the summary with a row; empty for one that is no evaluation's."""
        found = evaluation_of(values)
        if self._chosen.metric not in found:
            return {}
        update: dict[str, Any] = {f"last/{name}": value for name, value in found.items()}
        if is_better(found, self._best, self._chosen):
            self._best = found
            update |= {**found, "best_metric": self._chosen.metric, "best_step": values["step"]}
        return update


def evaluation_of(values: Mapping[str, Any]) -> dict[str, float | int]:
    """The metrics of an evaluation in a row."""
    return {
        name: value
        for name, value in values.items()
        if name.startswith(EVALUATIONS) and isinstance(value, int | float) and math.isfinite(value)
    }


def summary_of(rows: Iterable[Row], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run that has come so far."""
    best = BestSoFar(chosen)
    summary: dict[str, Any] = {}
    for _, values in rows:
        summary |= best.after(values)
    return summary
