"""Where a run's time went, and the memory of its processes."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch


@dataclass
class Times:
    """Seconds on the main process, of all attempts at a run together.

    They are written down at evaluations: of what was done after the last one before a crash, they
    hold nothing.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    """by what was done, ``evaluation``, ``checkpoint``, ``features`` or ``report``"""
    training: dict[str, float] = field(default_factory=dict)
    """in steps, by the name of the phase"""
    first_step: float | None = None
    """from the command to the end of the first step of the last attempt"""
    attempts: int = 0
    memory: list[dict[str, Any]] = field(default_factory=list)
    """of each process by rank, see `peak_memory`"""
    _within: float = 0.0
    """seconds of blocks within the one that goes on"""

    @contextlib.contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Add the seconds that the block takes, without those of such blocks within it."""
        began, outside = time.perf_counter(), self._within
        self._within = 0.0
        try:
            yield
        finally:
            passed = time.perf_counter() - began
            self.seconds[what] = self.seconds.get(what, 0.0) + passed - self._within
            self._within = outside + passed

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`; what is none of it is left out."""
        made = cls()
        for name in ("seconds", "training"):
            found = values.get(name)
            if isinstance(found, dict):
                numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
                setattr(made, name, numbers)
        if isinstance(values.get("attempts"), int):
            made.attempts = values["attempts"]
        if isinstance(values.get("first_step"), int | float):
            made.first_step = values["first_step"]
        if isinstance(values.get("memory"), list):
            made.memory = [row for row in values["memory"] if isinstance(row, dict)]
        return made


def peak_memory(rank: int, device: torch.device) -> dict[str, Any]:
    """The most bytes that this process has held: of the machine's memory and of its GPU's."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    found: dict[str, Any] = {
        "rank": rank,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
    if device.type == "cuda":
        found["gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return found
