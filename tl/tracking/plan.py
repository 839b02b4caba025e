"""How long the phases of a run are, and where in them a step is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PhasePlan:
    """How long a phase takes, in steps."""

    name: str
    steps: int
    steps_per_epoch: int
    evaluate_every: int
    """steps between two evaluations; there is another one at the end"""
    evaluation_images: float = 0.0
    """of one evaluation, in batches of training"""

    def evaluations(self, done: int) -> int:
        """How many there are up to ``done`` of its steps."""
        return done // self.evaluate_every + (done == self.steps and done % self.evaluate_every > 0)

    def epochs(self, done: int) -> int:
        """How many it has begun with ``done`` of its steps."""
        return math.ceil(done / self.steps_per_epoch)


@dataclass(frozen=True)
class Place:
    """Where a step is."""

    index: int
    """of its phase"""
    done: int
    """steps of that phase before it"""
    epoch: int
    """from 1, in the run"""


def place_after(phases: Sequence[PhasePlan], step: int) -> Place:
    """Where the step after ``step`` steps is; after the last one, at the end of the last phase."""
    epochs = 0
    for index, phase in enumerate(phases):
        if step < phase.steps or index == len(phases) - 1:
            return Place(index, step, epochs + phase.epochs(min(step + 1, phase.steps)))
        step -= phase.steps
        epochs += phase.epochs(phase.steps)
    raise AssertionError("a run has a phase")
