"""System metrics of every process: a shared W&B run beside the one that is trained, and safe."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tl.config import Config, TrackingConfig, WandbConfig
from tl.tracking.console import open_console
from tl.tracking.tracker import RunInfo
from tl.tracking.trackers import SYSTEM, Process, open_trackers
from tl.tracking.wandb_service import all_but_wandbs_own
from tl.tracking.wandb_system import SystemMetrics, gpu_of_machine, shared_arguments

from .stand_in_server import StandInServer
from .wandb_runs import (
    begin,
    ended,
    go_on,
    new_run,
    on_server,
    recorded,
    said,
    took,
    wait_for,
    wait_until,
)

MEASURED = {"WANDB_X_DISABLE_STATS": "false", "WANDB_X_STATS_SAMPLING_INTERVAL": "1"}
FINISH_SECONDS = 2


def labels(events: list[dict[str, Any]]) -> set[str]:
    return {key.partition("/l:")[2] for event in events for key in event if "/l:" in key}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Folder, server and what was said of a run of two processes."""
    server, folder = StandInServer(), new_run(tmp_path_factory.mktemp("runs") / "run")
    with contextlib.ExitStack() as stack:
        stack.callback(server.close)
        options = {"at": {"10": "pause"}}
        processes = [begin(folder, {**options, "rank": r}, server, **MEASURED) for r in (0, 1)]
        for process in processes:
            stack.callback(process.kill)
        output = [wait_for(process) for process in processes]

        def all_are_there() -> bool:
            shared = server.runs.get("abc123-system")
            return shared is not None and labels(shared.events) == {"rank0", "rank1"}

        wait_until(all_are_there)
        for process in processes:
            go_on(process)
        yield folder, server, output[0] + ended(processes[0]), ended(processes[1])


def test_each_process_measures_under_a_label_of_its_own(measured: Any) -> None:
    _, server, said_by_main, _ = measured
    shared, own = server.runs["abc123-system"], server.runs["abc123"]
    assert shared.modes == {"true"}
    measures = {key for event in shared.events for key in event if not key.startswith("_")}
    assert {key.partition("/l:")[2] for key in measures} == {"rank0", "rank1"}
    assert {f"system.proc.memory.rssMB/l:rank{rank}" for rank in (0, 1)} <= measures
    assert shared.history == []
    assert shared.exit_codes == [0]  # once, by the main process
    assert (shared.variables["jobType"], own.variables["jobType"]) == ("system", "train")
    assert shared.variables["groupName"] == own.variables["groupName"]
    assert f"{server.url}/ent/transfer-launcher/runs/abc123-system" in said_by_main


def test_the_run_itself_is_as_without_them(measured: Any) -> None:
    folder, server, _, _ = measured
    assert server.runs["abc123"].modes == {None}
    assert on_server(server) == recorded(folder)
    assert server.runs["abc123"].exit_codes == [0]


@pytest.mark.parametrize("fault", ["hangs", "kill_service", "stop_service"])
def test_what_fails_there_neither_fails_nor_stalls_a_process(
    tmp_path: Path, server: StandInServer, fault: str
) -> None:
    options: dict[str, Any] = {"rank": 1, "finish_seconds": FINISH_SECONDS}
    if fault == "hangs":
        server.fault = fault
        process = begin(new_run(tmp_path), options, server, **MEASURED)
    else:
        options["at"] = {"10": "pause", "11": fault}
        process = begin(new_run(tmp_path), options, server, **MEASURED)
        wait_for(process)
        wait_until(lambda: "abc123-system" in server.runs)
        go_on(process)
    output = ended(process)
    assert took(output, "finish") < FINISH_SECONDS + 3
    assert took(output, "log") < 1
    assert "Traceback" not in output
    for line in said(output):
        assert line.startswith(("W&B, system metrics of all", "W&B: no system metrics")), line


def test_of_wandbs_own_thread_no_traceback_is_shown_and_of_any_other_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its service may die between two lines of `wandb.init`, which no test can time."""

    def fail() -> None:
        raise ConnectionResetError(threading.current_thread().name)

    monkeypatch.setattr(threading, "excepthook", all_but_wandbs_own)
    for name in ("NetStatThr", "another"):
        thread = threading.Thread(target=fail, name=name)
        thread.start()
        thread.join()
    said = capsys.readouterr().err
    assert "ConnectionResetError: another" in said
    assert "NetStatThr" not in said


def test_offline_it_is_said_that_they_need_a_server_and_no_thread_begins(tmp_path: Path) -> None:
    lines: list[str] = []
    metrics = SystemMetrics(WandbConfig(mode="offline"), lines.append, 0, environ={})
    metrics.start(RunInfo(Config().model_dump(), tmp_path, "abc123", 10))
    metrics.finish({}, "done")
    [line] = lines
    assert "tracking.wandb.system_metrics=all needs a server" in line


def test_only_where_it_is_asked_for_do_other_processes_have_anything_to_do_with_wandb() -> None:
    def active(asked: str, rank: int, processes: int, *trackers: str) -> list[str]:
        wandb = WandbConfig(system_metrics=asked)  # type: ignore[arg-type]
        config = TrackingConfig(trackers=list(trackers), wandb=wandb)
        return open_trackers(config, open_console(), process=Process(rank, processes)).active

    assert active("main", 0, 2, "jsonl", "wandb") == ["jsonl", "wandb"]
    assert active("main", 1, 2, "jsonl", "wandb") == []
    assert active("all", 0, 2, "wandb", "jsonl") == ["jsonl", "wandb", SYSTEM]
    assert active("all", 1, 2, "jsonl", "wandb") == [SYSTEM]
    assert active("all", 0, 1, "jsonl", "wandb") == ["jsonl", "wandb"]
    assert active("all", 1, 2, "jsonl") == []


@pytest.mark.parametrize(
    ("visible", "gpu", "found"),
    [(None, 1, [1]), ("", 1, [1]), ("4,6", 1, [6]), ("4", 1, []), ("GPU-ab,GPU-cd", 0, [])],
)
def test_a_process_measures_its_own_gpu(visible: str | None, gpu: int, found: list[int]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu_of_machine(gpu, environ) == found


def test_the_second_run_is_another_one_with_a_name_that_wandb_takes() -> None:
    made = shared_arguments({"id": "a", "name": "x" * 128, "group": "g", "resume": "allow"})
    assert made["id"] == "a-system"
    assert len(made["name"]) == 128
    assert made["name"].endswith(" · system")
    assert (made["group"], made["resume"]) == ("g", None)
