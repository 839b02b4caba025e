"""status.json and the atomic writing below it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from full_disk import files_end_at

from tl.atomic import from_json, write_json_atomically, write_text_atomically
from tl.errors import UserError
from tl.tracking import status
from tl.tracking.status import LiveStatus, read_status, write_status


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    write_status(tmp_path, "running", 0)
    write_status(tmp_path, "preempted", 120, exit_code=75, message="SIGTERM")
    found = read_status(tmp_path)
    assert found is not None
    assert found.pop("updated").endswith("+00:00")
    assert found == {"state": "preempted", "exit_code": 75, "step": 120, "message": "SIGTERM"}
    assert os.listdir(tmp_path) == ["status.json"]  # noqa: PTH208


def test_the_step_of_a_run_that_goes_on_is_written_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(status.time, "monotonic", lambda: now)
    write_status(tmp_path, "running", 0)
    live, nowhere = LiveStatus(tmp_path), LiveStatus(None)
    written = []
    for step in range(1, 31):
        now = step * 0.75
        live.reached(step)
        nowhere.reached(step)
        written.append((read_status(tmp_path) or {})["step"])
    assert written == [0] * 13 + [14] * 14 + [28] * 3


def test_the_step_takes_no_failure_back_and_needs_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "SECONDS_BETWEEN", 0.0)
    live = LiveStatus(tmp_path)
    write_status(tmp_path, "failed", 3, exit_code=1, message="of another process")
    live.reached(4)
    assert (read_status(tmp_path) or {})["state"] == "failed"
    write_status(tmp_path, "running", 3)
    with files_end_at(0):
        live.reached(4)
    assert (read_status(tmp_path) or {})["step"] == 3
    live.reached(5)
    assert (read_status(tmp_path) or {})["step"] == 5


def test_a_status_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "run')
    with pytest.raises(UserError, match=r"status\.json is not JSON"):
        read_status(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "half \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomically(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_name_that_is_no_utf_8_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_status(tmp_path, "failed", 1, 2, f"cannot decode {name}")
    found = read_status(tmp_path)
    assert found is not None
    assert found["message"] == f"cannot decode {name}"
    assert (tmp_path / "status.json").read_text("utf-8").count("caf\\udce9.png") == 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff", ""])
def test_what_is_no_json_that_python_can_read_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        from_json(text)
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(UserError, match="is not JSON"):
        read_status(tmp_path)


def test_nan_is_null_however_deep(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "file", {"a": [{"b": float("nan")}, (1.5, float("inf"))]})
    assert json.loads((tmp_path / "file").read_text()) == {"a": [{"b": None}, [1.5, None]]}
