"""What became of weights on their way into a network, by name and counted by stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tl.errors import printable
from tl.models.network import Network

_SHOWN = 10  # names that are listed of each kind


class StageCount(NamedTuple):
    """How many tensors of a stage were loaded, are new, or were in the file and are not used."""

    stage: str
    loaded: int
    new: int
    dropped: int
    skipped: int


@dataclass(frozen=True)
class LoadReport:
    """Where weights came from, and the names of what was loaded, left new, and not used.

    ``dropped`` are names of the file that the network has no place for, or whose place is left
    new; ``skipped`` those of a graft that were of another shape. ``notes`` say, a line each, what
    else was done.
    """

    source: str
    names: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def loaded(self) -> int:
        """How many tensors were loaded."""
        return len(self.names)

    def with_new(self, names: Iterable[str]) -> LoadReport:
        """The report when the network has these names, of which those that no one knew are new."""
        names = list(names)
        gone = set(self.names) - set(names)
        return replace(
            self,
            names=tuple(name for name in self.names if name not in gone),
            new=tuple(name for name in names if name not in self.names),
            dropped=(*self.dropped, *gone),
        )

    def with_note(self, note: str) -> LoadReport:
        return replace(self, notes=(*self.notes, note))


def by_stage(network: Network, report: LoadReport) -> list[StageCount]:
    """The counts of a report, a row for each stage; what belongs to none is the last row."""
    rows = [(stage.name, stage) for stage in network.stages]
    rows += [(f"{stage.name} (cut off)", stage) for stage in network.left_out]
    left = [set(report.names), set(report.new), set(report.dropped), set(report.skipped)]
    counts = []
    for title, stage in rows:
        mine = [{name for name in names if stage.owns_name(name)} for names in left]
        left = [names - found for names, found in zip(left, mine, strict=True)]
        counts.append(StageCount(title, *map(len, mine)))
    if any(left):
        counts.append(StageCount("elsewhere", *map(len, left)))
    return counts


def listed(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    names = list(names)
    rest = f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name)[:100] for name in names[:_SHOWN]) + rest
