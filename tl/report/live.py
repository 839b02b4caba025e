"""What a run that goes on keeps in memory for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tl.freeze_plan import StagePlan
from tl.report.pictures import Pictures
from tl.report.times import Times


@dataclass
class Live:
    """See `tl.engine.reporting`."""

    times: Times = field(default_factory=Times)
    plans: Sequence[Sequence[StagePlan]] = ()
    """the freeze plan of each phase"""
    pictures: Pictures = field(default_factory=Pictures)
    counted: float = 0.0
    """seconds of training that are in ``times``"""
    due: float = 0.0
    """when, on the monotonic clock, the page may be renewed"""
    said: set[str] = field(default_factory=set)
    """why it was not"""
