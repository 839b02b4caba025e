"""Promise 6 with the real wandb: a run that is seen, and that W&B neither fails nor stalls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CHILD = Path(__file__).with_name("wandb_child.py")


def begin(folder: Path, options: dict[str, Any], **environ: str) -> subprocess.Popen[str]:
    """Start a run in an environment that knows nothing of the tester's own W&B."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {
        "PYTHONPATH": str(CHILD.parents[2]),
        "NETRC": str(folder / "no-netrc"),
        "WANDB_CONFIG_DIR": str(folder / "no-settings"),
    }
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), json.dumps(options)],
        env={**clean, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def run(folder: Path, options: dict[str, Any] | None = None, **environ: str) -> str:
    return ended(begin(folder, options or {}, **environ))


def took(output: str, call: str) -> float:
    match = re.search(rf"^{call} took ([\d.]+)$", output, re.MULTILINE)
    assert match, output
    return float(match.group(1))


def recorded(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*run-*/*.wandb"))


@pytest.fixture(scope="module")
def offline_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a run that is preempted and of its restart."""
    folder = tmp_path_factory.mktemp("run")
    run(folder, {"state": "preempted"}, WANDB_MODE="offline")
    output = run(folder, WANDB_MODE="offline")
    first, second = recorded(folder)
    assert f"wandb sync {second.parent}" in output
    return first, second


def test_an_offline_run_holds_every_line(
    offline_runs: tuple[Path, Path], read_wandb_file: Any
) -> None:
    record = read_wandb_file(offline_runs[1])
    assert record["config"]["a"] == 1
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
    assert len(recorded(tmp_path)) == 1
    why, where, sync = [line for line in output.splitlines() if " took " not in line]
    assert "there is no key" in why
    assert "wandb login" in why
    assert where.startswith("say: W&B: offline, in ")
    assert "wandb sync " in sync


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


def test_an_online_run_sends_everything_and_ends_with_its_link(
    tmp_path: Path, server: Any, key: str
) -> None:
    output = run(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=key)
    assert output.count("/ent/proj/runs/abc123") == 2
    assert [row["step"] for row in server.history] == [10, 10, 20, 20, 30, 30]
    assert server.summary["val/accuracy"] == 0.5
    for file in tmp_path.glob("wandb/**/*"):
        if file.is_file():
            assert key.encode() not in file.read_bytes(), f"the key is in {file}"


def test_a_restart_sends_no_step_again_that_the_server_has(
    tmp_path: Path, server: Any, key: str
) -> None:
    server.resumes_at = 20
    run(tmp_path, {"resumed_at": 5}, WANDB_BASE_URL=server.url, WANDB_API_KEY=key)
    assert [row["step"] for row in server.history] == [20, 20, 30, 30]
    assert [row["_step"] for row in server.history] == [3, 4, 5, 6]


def test_a_server_that_cannot_be_reached_costs_no_training_time_and_no_data(
    tmp_path: Path, server: Any, key: str, read_wandb_file: Any
) -> None:
    server.hangs.set()
    began = time.monotonic()
    options = {"init_seconds": 2, "finish_seconds": 4, "wait_seconds": 0.2}
    runs = {}
    for fault, url in {"hangs": server.url, "refuses": "http://127.0.0.1:9"}.items():
        (tmp_path / fault).mkdir()
        environ = {"WANDB_BASE_URL": url, "WANDB_API_KEY": key}
        runs[fault] = begin(tmp_path / fault, options, **environ)
    for fault, process in runs.items():
        output = ended(process)
        assert took(output, "start") < 5  # importing wandb, starting its service, and 0.2 s
        assert "cannot be reached, so the run is recorded offline" in output
        (file,) = tmp_path.glob(f"{fault}/wandb/offline-run-*/*.wandb")
        steps = [row["step"] for row in read_wandb_file(file)["history"]]
        assert steps == [10, 10, 20, 20, 30, 30]
    assert time.monotonic() - began < 25


def test_a_server_that_hangs_at_the_end_holds_the_run_for_a_bounded_time(
    tmp_path: Path, server: Any, key: str
) -> None:
    options = {"finish_seconds": 2, "pause": True}
    process = begin(tmp_path, options, WANDB_BASE_URL=server.url, WANDB_API_KEY=key)
    assert process.stdout is not None
    assert process.stdin is not None
    while "pause" not in process.stdout.readline():
        pass
    server.hangs.set()
    began = time.monotonic()
    output, _ = process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert took(output, "finish") < 4
    assert time.monotonic() - began < 10
    assert "To upload the rest: wandb sync" in output


def test_a_service_that_dies_is_told_in_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    output = run(tmp_path, {"kill_service": True}, WANDB_MODE="offline")
    assert output.count("wandb is switched off, the run goes on") == 1
    assert "Traceback" not in output
    assert "finish took" in output
