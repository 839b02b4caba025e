"""Exactly once, by a row's position, through crashes and a server that comes and goes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.tracking.jsonl import JsonlTracker, read
from tl.tracking.tracker import RunInfo
from tl.tracking.wandb_rows import LINES_PER_STEP, NOTHING, Positions, rows_of

EPOCH = 10


def test_a_position_is_the_step_and_how_many_lines_of_it_came_before() -> None:
    positions = Positions()
    assert [positions.of(step) for step in (0, 5, 10, 10, 10, 11)] == [
        0,
        500,
        1000,
        1001,
        1002,
        1100,
    ]


def test_what_was_logged_before_a_step_does_not_move_its_positions() -> None:
    fine, coarse = Positions(), Positions()
    for step in range(1, 10):
        fine.of(step)
    coarse.of(5)
    assert [fine.of(10), fine.of(10)] == [coarse.of(10), coarse.of(10)]


def test_more_lines_for_a_step_than_there_are_positions_are_an_error() -> None:
    positions = Positions()
    for _ in range(LINES_PER_STEP):
        positions.of(1)
    with pytest.raises(ValueError, match="more than 90 lines"):
        positions.of(1)


def test_a_row_is_its_line_at_the_time_of_the_line() -> None:
    line = {"step": 3, "phase": "head", "time": 12.5, "train/loss": 0.5, "lr": None}
    [(position, row)] = rows_of([line], Positions())
    assert position == 300
    assert math.isnan(row.pop("lr"))
    assert row == {
        "step": 3, "phase": "head", "phase_number": 1, "_timestamp": 12.5, "train/loss": 0.5
    }  # fmt: skip


def test_phases_are_numbered_in_their_order_also_when_a_run_goes_on() -> None:
    lines = [{"step": step, "phase": name} for step, name in enumerate(["a", "a", "b", "a"])]
    whole = [row["phase_number"] for _, row in rows_of(lines, Positions())]
    assert whole == [1, 1, 2, 3]
    positions = Positions()
    rows_of(lines[:3], positions)
    assert positions.row(lines[3])[1]["phase_number"] == 3


# One life of a run: how it logs, when it dies, and whether and how much W&B gets of it.
LIFE = st.fixed_dictionaries(
    {
        "log_every": st.integers(1, 7),
        "steps": st.integers(1, 35),
        "online": st.booleans(),
        "lost": st.integers(0, 12),
    }
)


@given(lives=st.lists(LIFE, min_size=1, max_size=6), every=st.none() | st.integers(1, 7))
def test_whatever_dies_whenever_the_server_gets_the_record_once(
    lives: list[dict[str, Any]], every: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the real record, and a list for the server. ``every``: log_every of all lives."""
    folder = tmp_path_factory.mktemp("run")
    server: list[tuple[int, dict[str, Any]]] = []
    checkpoint = 0
    for number, life in enumerate(lives):
        record, positions, queue = JsonlTracker(), Positions(), []
        record.start(RunInfo({}, folder, "id", 100, checkpoint, resumed=number > 0))
        queue += rows_of(read(folder / "metrics.jsonl"), positions)  # as WandbTracker.start
        step = checkpoint
        for step in range(checkpoint + 1, checkpoint + life["steps"] + 1):
            for kind in _lines_of(step, every or life["log_every"]):
                record.log({kind: step / 100}, step)
                queue.append((positions.of(step), {"step": step, kind: step / 100}))
        if life["online"]:  # and dies with the last rows on their way
            _take(server, queue[: max(0, len(queue) - life["lost"])])
        checkpoint = step - step % EPOCH
        record.finish({}, "failed")
    final = rows_of(read(folder / "metrics.jsonl"), Positions())
    last = server[-1][0] if server else NOTHING
    _take(server, final)  # as tl sync
    there = [position for position, _ in server]
    assert there == sorted(set(there)), "twice, or out of order"
    # All that came after what the server had; and all of it, if each life logged the same steps.
    wanted = [position for position, _ in final if position > last or every is not None]
    assert set(wanted) <= set(there)
    values = {position: row["step"] for position, row in server}
    assert all(values[position] == row["step"] for position, row in final if position in values)
    # The end of an epoch is never missing, however often the steps in between were logged.
    ends = [position for position, row in final if row["step"] % EPOCH == 0]
    assert set(ends) <= set(there)
    before = list(server)
    _take(server, final)
    assert server == before


def _lines_of(step: int, log_every: int) -> list[str]:
    ends = step % EPOCH == 0
    return ["train"] * (ends or step % log_every == 0) + ["val"] * ends


def _take(server: list[tuple[int, dict[str, Any]]], rows: list[tuple[int, dict[str, Any]]]) -> None:
    last = server[-1][0] if server else NOTHING
    server.extend(row for row in rows if row[0] > last)
