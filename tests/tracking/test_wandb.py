"""Promise 6 with the real wandb: a run that is seen, and that W&B neither fails nor stalls."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .stand_in_server import KEY, StandInServer
from .wandb_runs import on_server, recorded, run, said


def wandb_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*run-*/*.wandb"))


@pytest.fixture(scope="module")
def offline_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a run that is preempted and of its restart."""
    folder = tmp_path_factory.mktemp("run")
    run(folder, {"state": "preempted"}, WANDB_MODE="offline")
    output = run(folder, WANDB_MODE="offline")
    first, second = wandb_files(folder)
    assert f"tl sync {folder}" in output
    return first, second


def test_an_offline_run_holds_every_line(
    offline_runs: tuple[Path, Path], read_wandb_file: Any
) -> None:
    record = read_wandb_file(offline_runs[1])
    assert record["config"]["seed"] == 0
    assert [(row["step"], row.get("val/loss")) for row in record["history"]] == [
        (10, None),
        (10, 0.2),
        (20, None),
        (20, 0.1),
        (30, None),
        (30, 2 / 30),
    ]
    assert record["summary"]["val/accuracy"] == 0.5


def test_one_id_goes_through_restarts_and_the_exit_code_says_how_each_ended(
    offline_runs: tuple[Path, Path], read_wandb_file: Any
) -> None:
    first, second = map(read_wandb_file, offline_runs)
    assert first["id"] == second["id"] == "abc123"
    assert (first["exit_code"], second["exit_code"]) == (75, 0)


def test_without_a_key_it_says_how_to_log_in_where_it_goes_how_to_sync_and_no_more(
    tmp_path: Path,
) -> None:
    output = run(tmp_path)
    assert len(wandb_files(tmp_path)) == 1
    why, where, sync = said(output)
    assert "there is no key" in why
    assert "wandb login" in why
    assert where.startswith("W&B: offline, in ")
    assert f"tl sync {tmp_path}" in sync


def test_a_run_without_a_record_is_told_of_wandbs_own_way(tmp_path: Path) -> None:
    output = run(tmp_path, {"trackers": ["wandb"]}, WANDB_MODE="offline")
    assert f"wandb sync {wandb_files(tmp_path)[0].parent}" in said(output)[-1]


def test_disabled_leaves_nothing_and_does_not_import_wandb(tmp_path: Path) -> None:
    output = run(tmp_path, WANDB_MODE="disabled", PYTHONPROFILEIMPORTTIME="1")
    assert "W&B is off: WANDB_MODE=disabled" in output
    imported = re.findall(r"^import time:.*\| +(\S+)$", output, re.MULTILINE)
    assert "tl.tracking.wandb" in imported
    assert "wandb" not in imported
    assert not list(tmp_path.glob("wandb/*"))


def test_neither_uncommitted_changes_nor_the_environment_are_recorded(
    tmp_path: Path, read_wandb_file: Any
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("committed\n")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    (tmp_path / "file").write_text("half-done\n")
    run(tmp_path, WANDB_MODE="offline", WANDB_GIT_ROOT=str(tmp_path), SOME_TOKEN="hunter2")
    assert not list(tmp_path.glob("wandb/**/*.patch"))
    for file in tmp_path.glob("wandb/**/*"):
        if file.is_file():
            assert b"hunter2" not in file.read_bytes(), file


def test_an_online_run_sends_every_line_once_and_ends_with_its_link(
    tmp_path: Path, server: StandInServer
) -> None:
    output = run(tmp_path, {}, server)
    assert output.count("/ent/transfer-launcher/runs/abc123") == 2
    assert on_server(server) == recorded(tmp_path)
    stored = server.runs["abc123"]
    assert len(stored.sent) == len(stored.history) == 6
    assert stored.summary["val/accuracy"] == 0.5
    assert stored.exit_codes == [0]
    for file in tmp_path.glob("**/*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), f"the key is in {file}"
