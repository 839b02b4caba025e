"""What all processes have to know before any of them acts on it, shared without making them wait.

After each step every process hands in its flags, and the processes take the highest of each. What
has come of it is looked at one step later, when it has long arrived: training waits for nothing.
As all look at the same step's flags, they all stop, save or fail between the same two steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tl.engine.runtime import Runtime


class Wishes(NamedTuple):
    """What a process wants all of them to do between two steps."""

    stop: bool = False
    """there is a reason to"""
    save: bool = False
    """it is time for a checkpoint"""
    fail: bool = False
    """something that has to be written could not be"""


class Verdict(NamedTuple):
    """What was wrong with a step, on any process."""

    bad_loss: bool
    bad_gradient: bool


class Agreement:
    """The flags of all processes, one step behind. Every method is to be called by all of them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._told: deque[tuple[int, Callable[[], list[float]]]] = deque()
        # What any process has wished for; once heard it stays, until it has been done.
        self.stop = self.save = self.fail = False

    def tell(
        self,
        step: int,
        wishes: Wishes,
        bad_loss: Tensor | None = None,
        bad_gradient: Tensor | None = None,
    ) -> None:
        """Hand in this process's flags after ``step``; the tensors are scalars, on the device."""
        flags = torch.tensor([*wishes, False, False], dtype=torch.float32)
        flags = flags.to(self._runtime.device, non_blocking=True)
        if bad_loss is not None and bad_gradient is not None:
            flags[3:] = torch.stack([bad_loss, bad_gradient])
        self._told.append((step, self._runtime.start_max(flags)))

    def hear(self, everything: bool) -> list[tuple[int, Verdict]]:
        """Steps and what was wrong with them, up to the step before the last.

        Args:
            everything: the last step's too, for which this has to wait.
        """
        heard = []
        while len(self._told) > (0 if everything else 1):
            step, arrived = self._told.popleft()
            stop, save, fail, bad_loss, bad_gradient = (value > 0 for value in arrived())
            self.stop |= stop
            self.save |= save
            self.fail |= fail
            heard.append((step, Verdict(bad_loss, bad_gradient)))
        return heard
