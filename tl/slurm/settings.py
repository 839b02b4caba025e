"""What a job asks of Slurm. All of it reaches a script, so each value has a strict pattern."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tl.config.values import Duration, Keys, NonNegativeInt, PositiveInt, seconds_of


def _of(pattern: str) -> object:
    return Field(pattern=rf"^{pattern}$", max_length=200)


Name = Annotated[str, _of(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")]
Names = Annotated[str, _of(r"[A-Za-z0-9_][A-Za-z0-9_.,-]*")]
Features = Annotated[str, _of(r"[A-Za-z0-9_(\[][A-Za-z0-9_.&|*\[\]()-]*")]
Memory = Annotated[str, _of(r"[0-9]+[KMGT]?")]
Modules = Annotated[str, _of(r"[A-Za-z0-9_][A-Za-z0-9_./+-]*( [A-Za-z0-9_][A-Za-z0-9_./+-]*)*")]
Place = Annotated[str, _of(r"[A-Za-z0-9_./~][A-Za-z0-9_./~+@=-]*")]


class JobSettings(Keys):
    """A job. What is null is left to Slurm: to its defaults, or to SBATCH_… variables."""

    name: Name = "transfer"
    """what squeue calls the job"""
    nodes: PositiveInt = 1
    """how many nodes"""
    gpus_per_node: NonNegativeInt = 1
    """GPUs of each, with a process for each; 0: train on CPUs"""
    processes_per_node: PositiveInt | None = None
    """null: one for each GPU, or one"""
    cpus_per_node: PositiveInt | None = None
    """cores for all processes of a node: loader workers and threads; null: 8 for each GPU"""
    mem: Memory | None = None
    """memory of each node, such as 64G"""
    time: Duration = "4h"
    """time limit, as 90m, 4h or 1-12:00:00; the job is requeued where it does not suffice"""
    partition: Names | None = None
    """where it queues; several with commas"""
    account: Name | None = None
    """who pays"""
    qos: Name | None = None
    """quality of service"""
    constraint: Features | None = None
    """features that the nodes must have, such as a100"""
    lead: PositiveInt = 180
    """seconds before the time limit at which the run is told to save and stop"""
    max_requeues: NonNegativeInt = 20
    """how often a job that was stopped so may queue again; only if it got on since the last time"""
    modules: Modules | None = None
    """modules to load"""
    venv: Place | None = None
    """virtual environment to activate"""
    conda: Name | None = None
    """conda environment to activate"""
    container: Place | None = None
    """Apptainer image to run in"""

    @model_validator(mode="after")
    def _check(self) -> JobSettings:
        if seconds_of(self.time) <= 2 * self.lead:
            raise ValueError(f"time={self.time} leaves no time to train before lead={self.lead} s")
        return self

    @property
    def cores(self) -> int:
        """Cores of a node."""
        return self.cpus_per_node or 8 * max(1, self.gpus_per_node)
