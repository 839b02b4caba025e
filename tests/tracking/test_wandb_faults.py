"""W&B that cannot hurt: whatever fails, and when, the run goes on, its record is whole, and one
line says what happened; afterwards `tl sync` makes W&B whole too.

With the real wandb. Several runs go at once, since most of their time is waiting.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from .stand_in_server import StandInServer, closed_port
from .wandb_runs import (
    begin,
    begin_sync,
    ended,
    go_on,
    on_server,
    recorded,
    said,
    took,
    wait_for,
    wait_until,
)

pytestmark = pytest.mark.slow

# What fails, and what is said of it.
NOBODY = closed_port()
LACKS = "W&B did not take everything; "
AT_THE_START = {
    "hangs": "W&B cannot be reached (",
    "500": "W&B cannot be reached (",
    "401": "W&B cannot be reached (",  # a key of nobody
    "short_key": "W&B cannot be reached (",
    "nobody": "W&B cannot be reached (",
}
ENVIRONMENT = {"short_key": {"WANDB_API_KEY": "too-short"}, "nobody": {"WANDB_BASE_URL": NOBODY}}
AFTER_AN_EPOCH = {
    "hangs": LACKS,
    "refuses": LACKS,
    "500": LACKS,
    "deaf": LACKS,
    "stream/401": LACKS,  # the key was withdrawn
    "stop_service": LACKS,
    "kill_service": "wandb is switched off, the run goes on: WandbError: ",
}
NAMES = [f"start {fault}" for fault in AT_THE_START] + [f"mid {fault}" for fault in AFTER_AN_EPOCH]
SYNCED = ["start hangs", "mid hangs", "mid deaf", "mid kill_service"]
AT_ONCE = 2  # beside what another process tests: more would wait for each other, not for W&B
INIT_SECONDS, FINISH_SECONDS = 2, 2


@dataclass
class Faulty:
    """A run of which something fails, and what came of it."""

    name: str
    folder: Path
    server: StandInServer
    process: subprocess.Popen[str]
    output: str = ""
    seconds_after_finish: float = 0.0
    synced: str = ""

    @property
    def when(self) -> str:
        return self.name.split()[0]

    @property
    def fault(self) -> str:
        return self.name.split()[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Faulty]]:
    """Each run after its fault, and some synced after that."""
    with contextlib.ExitStack() as stack:
        made = {}
        for first in range(0, len(NAMES), AT_ONCE):
            some = [_begin(n, tmp_path_factory, stack) for n in NAMES[first : first + AT_ONCE]]
            _carry_out(some)
            made |= {run.name: run for run in some}
        yield made


def _begin(name: str, places: pytest.TempPathFactory, stack: contextlib.ExitStack) -> Faulty:
    server, folder = StandInServer(), places.mktemp("runs") / "run"
    stack.callback(server.close)
    when, fault = name.split()
    options: dict[str, Any] = {"finish_seconds": FINISH_SECONDS, "answer_seconds": 2}
    if when == "start":
        server.fault = "" if fault in ENVIRONMENT else fault
        # It may take a moment to start anew, offline: there is time for that at the end.
        options |= {"init_seconds": INIT_SECONDS, "wait_seconds": 0.2, "finish_seconds": 10}
    else:
        options["at"] = {"10": "pause", "11": fault, "30": "pause"}
    process = begin(folder, options, server, **ENVIRONMENT.get(fault, {}))
    stack.callback(process.kill)
    return Faulty(name, folder, server, process)


def _carry_out(runs: list[Faulty]) -> None:
    in_between = [run for run in runs if run.when == "mid"]
    for run in in_between:
        run.output = wait_for(run.process)
    for run in in_between:
        stored = run.server.runs["abc123"]
        wait_until(lambda stored=stored: len(stored.history) == 2)  # type: ignore[misc]
        if not run.fault.endswith("_service"):
            run.server.fault = run.fault
        go_on(run.process, times=2)
    for run in runs:
        run.output += wait_for(run.process, "finish took")
        began = time.monotonic()
        run.output += ended(run.process)
        run.seconds_after_finish = time.monotonic() - began
        run.server.fault = ""
    to_sync = [run for run in runs if run.name in SYNCED]
    syncs = [begin_sync(run.folder, server=run.server) for run in to_sync]
    for run, process in zip(to_sync, syncs, strict=True):
        run.synced = ended(process)


@pytest.mark.parametrize("name", NAMES)
def test_the_training_goes_on_and_its_record_is_whole(runs: dict[str, Faulty], name: str) -> None:
    run = runs[name]
    lines = recorded(run.folder)
    assert [(line["step"], "val/loss" in line) for line in lines] == [
        (step, is_validation) for step in (10, 20, 30) for is_validation in (False, True)
    ]
    assert "Traceback" not in run.output


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_metrics_waits_for_wandb(runs: dict[str, Faulty], name: str) -> None:
    # A flush of the record, and what three other runs on two cores take: not a wait for W&B,
    # of which the shortest is two seconds.
    assert took(runs[name].output, "log") < 1


@pytest.mark.parametrize("name", NAMES)
def test_the_end_waits_for_a_bounded_time(runs: dict[str, Faulty], name: str) -> None:
    run = runs[name]
    # At the start: until wandb gives up, and then starts anew offline. Later: the last upload, and
    # the end of a service that hangs.
    limit = INIT_SECONDS + 6 if run.when == "start" else FINISH_SECONDS + 3
    assert took(run.output, "finish") < limit
    assert run.seconds_after_finish < 3


@pytest.mark.parametrize("name", NAMES)
def test_one_line_says_what_happened_and_how_to_send_the_run_later(
    runs: dict[str, Faulty], name: str
) -> None:
    run = runs[name]
    lines = [line for line in said(run.output) if line != "pause"]
    if run.when == "start":
        why, where, later = lines
        assert why.startswith(AT_THE_START[run.fault])
        assert why.endswith("so the run is recorded offline")
        assert where.startswith("W&B: offline, in ")
    else:
        link, later = lines
        assert "/runs/abc123" in link
        assert later.startswith(AFTER_AN_EPOCH[run.fault])
    assert later.endswith(f"to send the run later: tl sync {run.folder}")
    assert "too-short" not in run.output


@pytest.mark.parametrize("name", SYNCED)
def test_afterwards_a_sync_makes_wandb_whole(runs: dict[str, Faulty], name: str) -> None:
    run = runs[name]
    assert on_server(run.server) == recorded(run.folder)
    assert run.server.runs["abc123"].summary["val/accuracy"] == 0.5
    assert f"{run.server.url}/ent/transfer-launcher/runs/abc123" in run.synced
    if name != "mid deaf":  # it has taken more than it said
        assert f"{6 if run.when == 'start' else 4} of 6 lines sent" in run.synced


def test_no_process_is_left(runs: dict[str, Faulty]) -> None:
    folders = [str(run.folder) for run in runs.values()]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        assert not any(folder in word for folder in folders for word in words)


def test_lines_that_nobody_takes_end_the_tracker_and_not_the_run(
    tmp_path: Path, server: StandInServer
) -> None:
    options = {"waiting_lines": 4, "wait_seconds": 0.1}
    server.fault = "hangs"
    output = ended(begin(tmp_path, options, server))
    assert "4 lines wait for W&B; to send the run later: tl sync" in output
    assert len(recorded(tmp_path)) == 6
    assert "Traceback" not in output
