"""What a tracker is, and what it is told of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tl.tracking.plan import PhasePlan

Metrics = dict[str, float | int | str]

CONFIG, RUN_ID, SUMMARY, REPORT = "config.yaml", "run_id", "summary.json", "report.html"
"""What a run's folder says of the run as a whole; `tl.engine` writes them."""
SWEEP = "sweep.json"
"""in the folder of a sweep, in which its runs have theirs; `tl.slurm.job` writes it"""


@dataclass(frozen=True)
class RunInfo:
    """What a tracker may want to know of a run when it starts."""

    config: dict[str, Any]
    """the resolved config, as plain values"""
    run_dir: Path
    run_id: str
    """the same through all restarts of a run"""
    total_steps: int
    """optimizer steps of all phases together"""
    start_step: int = 0
    """steps that are done already"""
    resumed: bool = False
    """goes on from a checkpoint"""
    best: Mapping[str, float | int] = field(default_factory=dict)
    """the metrics of the best evaluation so far, and its ``step``"""
    phases: tuple[PhasePlan, ...] = ()
    """all of them, with ``total_steps`` together; none are given where nobody shows progress"""
    gpu: bool = False
    """the main process trains on one"""


class Tracker(Protocol):
    """Where metrics go. Made on the main process alone; called from its main thread."""

    def start(self, run: RunInfo) -> None:
        """Called once, before the first `log`."""

    def log(self, metrics: Metrics, step: int) -> None:
        """Take one line. There may be several for a step, say one of training, one of validation.

        ``metrics`` is shared by all trackers: it must not be changed.
        """

    def finish(self, summary: dict[str, Any], state: str) -> None:
        """Called once, at the end. ``state`` is done, failed or preempted."""


def one_line(error: BaseException) -> str:
    """An error as a person reads it in a log: its kind and the first line of what it says."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
