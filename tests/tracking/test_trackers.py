"""Every tracker gets every line, and a tracker that fails is left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from full_disk import files_end_at

from tl.config import TrackingConfig
from tl.errors import UserError
from tl.tracking.console import open_console
from tl.tracking.jsonl import JsonlTracker, read
from tl.tracking.tracker import Metrics, RunInfo
from tl.tracking.trackers import Trackers, open_trackers


class Recorder:
    """A tracker of somebody else; raises in the call that it is told to."""

    def __init__(self, fails_in: str = "") -> None:
        self.fails_in = fails_in
        self.calls: list[str] = []

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails_in:
            raise RuntimeError("no\nluck")

    def start(self, run: RunInfo) -> None:
        self._note("start")

    def log(self, metrics: Metrics, step: int) -> None:
        self._note("log")

    def finish(self, summary: dict[str, Any], state: str) -> None:
        self._note("finish")


def run_through(trackers: Trackers, run_dir: Path) -> None:
    trackers.start(RunInfo({}, run_dir, "id1", 2))
    trackers.log({"x": 1}, 1)
    trackers.log({"x": 2}, 2)
    trackers.finish({}, "done")


@pytest.mark.parametrize("call", ["start", "log", "finish"])
def test_a_tracker_that_raises_is_switched_off_with_one_line(call: str, tmp_path: Path) -> None:
    said: list[str] = []
    broken, sound = Recorder(fails_in=call), Recorder()
    jsonl = JsonlTracker()
    run_through(Trackers({"broken": broken, "sound": sound, "jsonl": jsonl}, said.append), tmp_path)
    assert said == ["broken is switched off, the run goes on: RuntimeError: no"]
    assert broken.calls.count(call) == 1
    assert broken.calls[-1] == call
    assert sound.calls == ["start", "log", "log", "finish"]
    assert [line["x"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_the_record_is_not_switched_off_but_raises_after_the_others_had_their_turn(
    tmp_path: Path,
) -> None:
    other = Recorder()
    trackers = Trackers({"other": other, "jsonl": Recorder(fails_in="log")}, print)
    trackers.start(RunInfo({}, tmp_path, "id1", 2))
    with pytest.raises(RuntimeError, match="luck"):
        trackers.log({"x": 1}, 1)
    assert trackers.active == ["jsonl", "other"]
    assert other.calls == ["start", "log"]


def test_a_screen_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    nobody_reads, end = os.pipe()
    os.close(nobody_reads)
    console = open_console(os.fdopen(end, "w", closefd=False))
    trackers = Trackers({"console": console, "jsonl": JsonlTracker()}, console.say)
    run_through(trackers, tmp_path)
    os.close(end)
    assert [line["x"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2]


def test_finish_twice_is_finish_once(tmp_path: Path) -> None:
    recorder = Recorder()
    trackers = Trackers({"recorder": recorder}, print)
    trackers.finish({}, "failed")
    trackers.finish({}, "failed")
    assert recorder.calls == ["finish"]


def test_an_unknown_name_is_an_error_that_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'wandb'") as error:
        open_trackers(TrackingConfig(trackers=["wanb"]), open_console())
    assert "tracking.trackers" in str(error.value)


def test_a_tracker_of_ones_own_is_named_by_package_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_trackers.py").write_text("class Mine:\n    pass\n\ndef bad(x): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["jsonl", "their_trackers:Mine", "jsonl"]
    trackers = open_trackers(TrackingConfig(trackers=names), open_console())
    assert trackers.active == ["jsonl", "their_trackers:Mine"]
    for name in ("their_trackers:Nobodys", "their_trackers:bad", "no_such_module:x"):
        with pytest.raises(UserError, match=name):
            open_trackers(TrackingConfig(trackers=[name]), open_console())


def test_disk_errors_that_are_borne_are_said_once_and_no_line_is_lost(tmp_path: Path) -> None:
    said: list[str] = []
    seen = Recorder()
    trackers = Trackers({"seen": seen, "jsonl": JsonlTracker()}, said.append, borne=True)
    trackers.start(RunInfo({}, tmp_path, "id1", 4))
    with files_end_at(10):
        trackers.log({"x": 1}, 1)
        trackers.log({"x": 2}, 2)
    trackers.log({"x": 3}, 3)
    trackers.finish({}, "done")
    assert [line["x"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert len(said) == 1
    assert "metrics.jsonl" in said[0]
    assert seen.calls == ["start", "log", "log", "log", "finish"]
