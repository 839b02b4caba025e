"""Whether a job that has ended queues again, and how far its run is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl.command import DONE, FAILURE, PREEMPTED

NO_STEP = -1
"""there is no checkpoint"""
STOP_FILE_SAID = "/stop is there"
"""in the message of a run that has found the file; the job's script makes one, too"""


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job."""

    code: int
    """what its script ends with; 75: it is requeued"""
    message: str


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, or `NO_STEP`."""
    names = (path.name for path in run_dir.glob("checkpoints/step-*"))
    steps = (re.fullmatch(r"step-([0-9]+)", name) for name in names)
    return max((int(step[1]) for step in steps if step), default=NO_STEP)


def decide(
    status: dict[str, Any] | None,
    *,
    code: int,
    began_at: int,
    step: int,
    asked: bool,
    ended: bool,
    requeues: int,
    max_requeues: int,
) -> Verdict:
    """What becomes of a job whose run has ended.

    Args:
        status: what the run wrote of itself, if it did.
        code: that of srun, which may be another one than the run's.
        began_at: step of the newest checkpoint as the job began.
        step: that of the newest one now.
        asked: Slurm said that the time is short.
        ended: Slurm has ended the job: it was cancelled, or is requeued by Slurm.
        requeues: how often the job was requeued before.
    """
    state = status["state"] if status else None
    failure = FAILURE if code in (DONE, PREEMPTED) else code
    if state == "done":
        return Verdict(DONE, "the run is done")
    if ended:
        return Verdict(failure, "Slurm has ended the job: it is Slurm's to requeue it")
    if state != "preempted":
        said = str(status["message"]) if status and state == "failed" else f"srun ended with {code}"
        own = status["exit_code"] if status and state == "failed" else failure
        return Verdict(own, f"the run has failed: {said}")
    assert status is not None
    where = f"stopped at step {step} with a checkpoint"
    if not asked and STOP_FILE_SAID in str(status["message"]):
        return Verdict(DONE, f"{where}, as whoever made the stop file wanted: not requeued")
    if step <= began_at:
        return Verdict(
            FAILURE,
            f"{where}, where it was as the job began: not requeued. Give it more time, or save "
            "more often (checkpoint.every_steps, checkpoint.every_minutes)",
        )
    if requeues >= max_requeues:
        return Verdict(FAILURE, f"{where}; requeued {requeues} times already: not requeued")
    return Verdict(PREEMPTED, f"{where}: requeued, {requeues + 1} of {max_requeues} times")
