"""Exactly once, with the real wandb: through restarts, outages and `tl sync`, W&B gets every line
of the record, and none twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tl.config import BestConfig
from tl.tracking.wandb_service import Sender

from .stand_in_server import StandInServer
from .wandb_runs import (
    begin,
    begin_sync,
    ended,
    go_on,
    on_server,
    recorded,
    run,
    sync,
    wait_for,
    wait_until,
)

# A run that is killed after step 25, with a checkpoint at step 20: how often it logs before and
# after, and whether W&B has got its rows by then.
KILLED = {
    "seen": (5, 5, True),
    "unseen": (5, 5, False),
    "finer": (5, 2, True),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Folder, server, and steps of the rows before the restart."""
    with contextlib.ExitStack() as stack:
        made, processes = {}, {}
        for name, (every, _, _) in KILLED.items():
            server, folder = StandInServer(), tmp_path_factory.mktemp("runs") / "run"
            stack.callback(server.close)
            server.fault = "" if KILLED[name][2] else "stream/hangs"
            made[name] = (folder, server, [])
            options = {"log_every": every, "at": {"25": "pause", "26": "kill"}}
            processes[name] = begin(folder, options, server)
            stack.callback(processes[name].kill)
        for name, (folder, server, steps) in made.items():
            process, seen = processes[name], KILLED[name][2]
            wait_for(process)
            if seen:
                wait_until(lambda f=folder, s=server: on_server(s) == recorded(f))  # type: ignore[misc]
            go_on(process)
            ended(process, code=-9)
            server.fault = ""
            steps += [row["step"] for row in on_server(server)]
        for name, (folder, server, _) in made.items():
            options = {"log_every": KILLED[name][1], "resumed_at": 20}
            processes[name] = begin(folder, options, server)
        for process in processes.values():
            assert "did not take" not in ended(process)
        yield made


def test_what_the_server_has_is_not_left_to_wandb_to_leave_out() -> None:
    """wandb 0.31 drops a row whose step has been; others number it anew."""
    given: list[int] = []

    class WandbRun:
        def log(self, values: dict[str, Any], step: int, commit: bool) -> None:
            given.append(step)

    sender = Sender(WandbRun(), BestConfig(metric="val/accuracy").model_dump(), 1000)
    for position in (500, 1000, 1001, 1001, 1500):
        sender.send((position, {}))
    assert given == [1001, 1500]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seen", "unseen"])
def test_a_run_that_was_killed_and_went_on_is_there_line_by_line(
    killed: dict[str, tuple[Any, ...]], name: str
) -> None:
    folder, server, before = killed[name]
    assert bool(before) == (name == "seen")
    assert on_server(server) == recorded(folder)
    assert len(recorded(folder)) == 9  # at 5, 10, ..., 30, and an evaluation at each tenth step


@pytest.mark.slow
def test_log_every_may_change_when_a_run_goes_on(killed: dict[str, tuple[Any, ...]]) -> None:
    """From five to two; `test_wandb_rows.py` has the others."""
    folder, server, before = killed["finer"]
    assert before == [5, 10, 10, 15, 20, 20, 25]
    there, lines = on_server(server), recorded(folder)
    # What has come stays, what comes after follows; steps 22 and 24 are in the row of step 25.
    assert [row["step"] for row in there] == [*before, 26, 28, 30, 30]
    assert [row for row in there if row["step"] != 25] == [
        line for line in lines if line["step"] not in (22, 24)
    ]


@pytest.mark.slow
def test_a_run_that_was_offline_for_a_while_sends_that_before_it_goes_on(
    tmp_path: Path, server: StandInServer
) -> None:
    run(tmp_path, {"steps": 10, "state": "preempted"}, server)
    assert len(on_server(server)) == 2
    server.fault = "500"
    options = {"steps": 20, "resumed_at": 10, "state": "preempted", "init_seconds": 1}
    assert "recorded offline" in run(tmp_path, options, server)
    server.fault = ""
    run(tmp_path, {"resumed_at": 20}, server)
    assert on_server(server) == recorded(tmp_path)
    assert len(server.runs["abc123"].sent) == 6
    assert server.runs["abc123"].exit_codes == [75, 0]


@pytest.mark.slow
def test_a_run_can_be_synced_while_it_is_offline_and_again_when_it_has_ended(
    tmp_path: Path, server: StandInServer
) -> None:
    process = begin(tmp_path, {"at": {"20": "pause"}}, server, WANDB_MODE="offline")
    wait_for(process)
    assert "4 of 4 lines sent" in sync(tmp_path, server=server)
    assert on_server(server) == recorded(tmp_path)
    stored = server.runs["abc123"]
    assert stored.exit_codes == []  # it goes on
    go_on(process)
    ended(process)

    assert "2 of 6 lines sent" in sync(tmp_path, server=server)
    assert on_server(server) == recorded(tmp_path)
    assert len(stored.sent) == 6
    assert stored.summary["val/accuracy"] == 0.5
    assert stored.exit_codes == [0]

    before = len(server.requests)
    assert "W&B has it all" in sync(tmp_path, server=server)
    assert server.requests[before:] == ["/graphql"]  # it asked, and sent nothing


def test_a_run_that_sends_is_not_sent_by_another(tmp_path: Path, server: StandInServer) -> None:
    process = begin(tmp_path, {"at": {"10": "pause"}}, server)
    wait_for(process)
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 11, "time": 0}\n')
    told = ended(begin_sync(tmp_path, server=server), code=2)
    assert "another process is sending this run" in told
    process.kill()
    ended(process, code=-9)
    assert " of 3 lines sent" in sync(tmp_path, server=server)
    assert on_server(server) == recorded(tmp_path)
