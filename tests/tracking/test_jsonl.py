"""The record of a run: valid JSON, one line a step, right after every restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from full_disk import files_end_at

from tl.errors import UserError
from tl.tracking.jsonl import JsonlTracker, read
from tl.tracking.tracker import RunInfo


def started(run_dir: Path, start_step: int = 0, resumed: bool = False) -> JsonlTracker:
    tracker = JsonlTracker()
    tracker.start(RunInfo({}, run_dir, "id1", 100, start_step, resumed))
    return tracker


def steps(run_dir: Path) -> list[int]:
    return [line["step"] for line in read(run_dir / "metrics.jsonl")]


def test_a_line_can_be_read_before_the_next_is_written(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.log({"train/loss": 0.5, "phase": "head", "epoch": 1}, step=10)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    line = json.loads(text)
    assert list(line) == ["step", "epoch", "phase", "time", "train/loss"]
    assert (line["step"], line["epoch"], line["phase"]) == (10, 1, "head")
    assert line["time"] > 1e9
    tracker.finish({}, "failed")


def test_nan_and_infinity_are_null(tmp_path: Path) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    tracker = started(tmp_path)
    tracker.log({"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.0}, step=1)
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert [line[key] for key in "abcd"] == [None, None, None, 1.0]


def test_a_resumed_run_takes_back_what_it_will_do_again(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    for step in (10, 20, 20, 30, 40):
        tracker.log({"x": step}, step)
    tracker = started(tmp_path, start_step=20, resumed=True)
    assert steps(tmp_path) == [10, 20, 20]
    tracker.log({"x": 30}, 30)
    assert steps(tmp_path) == [10, 20, 20, 30]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_begins_a_new_record(tmp_path: Path) -> None:
    started(tmp_path).log({"x": 1}, 0)
    started(tmp_path).log({"x": 2}, 0)
    assert [line["x"] for line in read(tmp_path / "metrics.jsonl")] == [2]


@pytest.mark.parametrize("torn", ['{"step": 20, "x', '{"step": 20, "x": 1}', '{"s\xff'])
def test_a_line_torn_by_a_crash_is_dropped(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10}\n' + torn.encode("latin-1"))
    assert steps(tmp_path) == [10]
    started(tmp_path, start_step=50, resumed=True).log({}, 60)
    assert steps(tmp_path) == [10, 60]


def test_a_line_that_is_not_ours_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n<<<<<<< HEAD\n{"step": 20}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 "):
        read(path)


def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "metrics.jsonl") == []


def test_a_full_disk_is_an_error_with_path_and_reason(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    with files_end_at(10), pytest.raises(OSError, match=r"File too large: .*metrics\.jsonl"):
        tracker.log({"x": 1}, 1)


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.log({"x": 1}, 1)
    whole = (tmp_path / "metrics.jsonl").stat().st_size
    with files_end_at(whole + 10):
        for step in (2, 3):
            with pytest.raises(OSError, match="too large"):
                tracker.log({"x": step}, step)
        assert steps(tmp_path) == [1]  # half a line is none
    tracker.log({"x": 4}, 4)
    assert [line["x"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_what_could_not_be_written_by_the_end_is_an_error(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    with files_end_at(10):
        with pytest.raises(OSError, match="too large"):
            tracker.log({"x": 1}, 1)
        with pytest.raises(OSError, match="too large"):
            tracker.finish({}, "done")
