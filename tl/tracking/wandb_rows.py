"""Which row of a W&B run is which line of the record, so that each is sent once.

A row's position is made of its step and of how many lines of that step came before it. It does not
depend on what was logged earlier, so it is the same for a step that is done again after a crash,
whatever `tracking.log_every` was and is.

The position is sent as wandb's own step (``_step``). Of that the server tells the last one when a
run is resumed, from the rows that it has. The run's summary would not do: the server may have it
before, or long after, the row it was made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

ROWS_PER_STEP = 100
LINES_PER_STEP = 90
"""of the record; the rows after them are for tables, when a run is done: for as many attempts"""
PHASE_NUMBER = "phase_number"
NOTHING = -1
"""the position before the first row"""
Row = tuple[int, dict[str, Any]]
"""a position and the values there"""


class Positions:
    """Gives each line its position; to be told of the lines in the order of the record."""

    def __init__(self) -> None:
        self._step, self._lines = NOTHING, 0
        self._phase: Any = None
        self._phases = 0

    def of(self, step: int) -> int:
        """The position of the next line, which is one of ``step``."""
        self._lines = self._lines + 1 if step == self._step else 0
        self._step = step
        if self._lines >= LINES_PER_STEP:
            raise ValueError(f"more than {LINES_PER_STEP} lines of metrics for step {step}")
        return step * ROWS_PER_STEP + self._lines

    def row(self, line: dict[str, Any]) -> Row:
        """The row of the next line. A chart's axis takes numbers: phases get theirs, from 1."""
        # null is how the record writes a value that is not finite.
        row: dict[str, Any] = {
            key: math.nan if value is None else value for key, value in line.items()
        }
        if "time" in row:  # when it happened, which is not when it is sent
            row["_timestamp"] = row.pop("time")
        if "phase" in row:
            self._phases += row["phase"] != self._phase
            self._phase = row["phase"]
            row[PHASE_NUMBER] = self._phases
        return self.of(line["step"]), row


def rows_of(lines: Iterable[dict[str, Any]], positions: Positions) -> list[Row]:
    """What W&B gets for lines of the record; ``positions`` has seen those before them."""
    return [positions.row(line) for line in lines]
