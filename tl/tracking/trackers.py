"""Which trackers there are, and how one line of metrics reaches them all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tl.config import TrackingConfig
from tl.errors import UserError, unknown
from tl.phases import load_object
from tl.tracking.console import ConsoleTracker
from tl.tracking.jsonl import JsonlTracker
from tl.tracking.tracker import Metrics, RunInfo, Tracker, one_line
from tl.tracking.wandb import WandbTracker
from tl.tracking.wandb_system import SystemMetrics

TRACKERS: dict[str, Callable[[TrackingConfig, ConsoleTracker], Tracker]] = {
    "jsonl": lambda config, console: JsonlTracker(),
    "wandb": lambda config, console: WandbTracker(config.wandb, console.say),
    "console": lambda config, console: console,
}
RECORD = "jsonl"
"""The tracker a run does not go on without."""
SYSTEM = "system metrics"


@dataclass(frozen=True)
class Process:
    """Which of a run's processes this is."""

    rank: int
    num_processes: int
    gpu: int | None = None
    """the number of its GPU, as torch counts them"""


ALONE = Process(0, 1)


class Trackers:
    """Hands everything to all trackers, and keeps their failures from the training.

    A tracker that raises is switched off with one line. Only the record's own errors, such as a
    full disk, are raised: a run whose metrics are lost is not worth its GPU hours. Where the disk's
    errors are to be ``borne`` they are said, and raised if the record is not whole at the end.
    """

    def __init__(
        self, trackers: dict[str, Tracker], say: Callable[[str], None], borne: bool = False
    ) -> None:
        # The record first: what a view shows is then always written down.
        self._trackers = dict(sorted(trackers.items(), key=lambda item: item[0] != RECORD))
        self._say = say
        self._borne = borne
        self._said_of_record = False

    @property
    def active(self) -> list[str]:
        """Names of the trackers that have not been switched off."""
        return list(self._trackers)

    def start(self, run: RunInfo) -> None:
        """Start all trackers."""
        self._each(lambda tracker: tracker.start(run))

    def log(self, metrics: Metrics, step: int) -> None:
        """Hand one line to all trackers."""
        try:
            self._each(lambda tracker: tracker.log(metrics, step))
            self._said_of_record = False
        except OSError as error:
            if not self._borne:
                raise
            if not self._said_of_record:
                self._say(f"kept in memory until there is room, the run goes on: {error}")
                self._said_of_record = True

    def finish(self, summary: dict[str, Any], state: str) -> None:
        """Finish all trackers, also those after one that fails. A second call does nothing."""
        try:
            self._each(lambda tracker: tracker.finish(summary, state))
        finally:
            self._trackers = {}

    def _each(self, call: Callable[[Tracker], None]) -> None:
        record_error: Exception | None = None
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                if name == RECORD:
                    record_error = error
                    continue
                del self._trackers[name]
                with contextlib.suppress(OSError):  # it may be the screen that has failed
                    self._say(f"{name} is switched off, the run goes on: {one_line(error)}")
        if record_error is not None:
            raise record_error


def open_trackers(
    config: TrackingConfig,
    console: ConsoleTracker,
    disk_errors: str = "stop",
    process: Process = ALONE,
) -> Trackers:
    """The trackers that a config names. ``console`` shows the messages of all of them.

    All are the main process's; the others have what measures their machine, if that is asked for.

    Code outside this project is named ``package.module:name`` and called without arguments.
    ``disk_errors`` is the config's key of that name.

    Raises:
        UserError: a name is none of a tracker.
    """
    trackers: dict[str, Tracker] = {}
    for name in dict.fromkeys(config.trackers) if process.rank == 0 else ():
        if ":" in name:
            trackers[name] = _own(name)
        elif name in TRACKERS:
            trackers[name] = TRACKERS[name](config, console)
        else:
            raise unknown("tracker", name, TRACKERS, "tracking.trackers")
    shared = config.wandb.system_metrics == "all" and process.num_processes > 1
    if shared and "wandb" in config.trackers:
        # The last, so that it ends when the run's own W&B run has.
        trackers[SYSTEM] = SystemMetrics(config.wandb, console.say, process.rank, process.gpu)
    return Trackers(trackers, console.say, borne=disk_errors == "continue")


def _own(name: str) -> Tracker:
    factory = load_object(name, "tracker")
    try:
        return factory()
    except Exception as error:
        raise UserError(f"tracker {name!r} cannot be made: {one_line(error)}") from error
