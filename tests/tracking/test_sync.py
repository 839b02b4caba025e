"""`tl sync`: what it sends besides rows, where to, and what it says where it cannot."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import sync as entry
from tl.config import WandbConfig
from tl.errors import UserError
from tl.tracking import sync as logic
from tl.tracking.jsonl import read
from tl.tracking.sync import read_record
from tl.tracking.tracker import RunInfo
from tl.tracking.wandb_place import read_place, write_place
from tl.tracking.wandb_server import OnServer, ServerError, ask
from tl.tracking.wandb_settings import init_arguments

from .stand_in_server import KEY, StandInServer, closed_port
from .wandb_runs import begin_sync, ended, new_run, on_server, recorded, run, sync

LINES = [{"step": 1, "time": 1.5, "train/loss": 0.5}, {"step": 1, "time": 2.5, "val/loss": None}]


def a_run(folder: Path, *overrides: str) -> Path:
    """A run with two lines, that died."""
    new_run(folder, *overrides)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


def test_it_goes_to_the_run_that_was_trained_with_its_name_config_and_summary(
    tmp_path: Path, server: StandInServer
) -> None:
    """Whatever the environment was when it was trained."""
    trained = new_run(tmp_path / "trained", "seed=7", "tracking.wandb.tags=[a, b]")
    run(
        trained, None, server,
        WANDB_MODE="offline", WANDB_RUN_ID="own", WANDB_NAME="mine", WANDB_RUN_GROUP="ours",
    )  # fmt: skip
    live = new_run(tmp_path / "live", "seed=7", "tracking.wandb.tags=[a, b]")
    run(live, None, server)
    told = sync(trained, server=server, WANDB_NAME="other")
    assert f"{trained}: 6 of 6 lines sent: {server.url}/ent/transfer-launcher/runs/own" in told
    assert on_server(server, "own") == recorded(trained)
    synced, lived = server.runs["own"], server.runs["abc123"]
    times = [line["time"] for line in read(trained / "metrics.jsonl")]
    assert [row["_timestamp"] for row in synced.history] == times
    assert [row["_step"] for row in synced.history] == [1000, 1001, 2000, 2001, 3000, 3001]
    assert synced.summary["val/accuracy"] == 0.5
    assert synced.variables["displayName"] == "mine"
    assert synced.variables["groupName"] == "ours"
    assert synced.variables["tags"] == lived.variables["tags"]
    assert synced.variables["tags"][-2:] == ["a", "b"]
    assert synced.variables["project"] == "transfer-launcher"
    configs = [json.loads(stored.variables["config"]) for stored in (synced, lived)]
    for config in configs:
        del config["_wandb"]
    assert configs[0] == configs[1]
    assert configs[0]["seed"] == {"value": 7}
    assert not list(trained.glob("wandb/run-*"))  # nothing but what the offline run left


def test_wandb_mode_offline_writes_the_whole_run_to_be_sent_by_wandb(
    tmp_path: Path, read_wandb_file: object
) -> None:
    folder = a_run(tmp_path)
    told = sync(folder, WANDB_MODE="offline")
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    assert f"wandb sync {file.parent}" in told
    record = read_wandb_file(file)  # type: ignore[operator]
    assert record["id"] == "abc123"
    assert [row["step"] for row in record["history"]] == [1, 1]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", r"refuses the key \(401 Unauthorized\); to log in: `wandb login`"),
        ("500", r"answers 500 Internal Server Error\. Try again later"),
        ("hangs", r"cannot be reached \(timed out\)"),
        ("refuses", r"cannot be reached \("),
    ],
)
def test_a_server_that_does_not_say_what_it_has_is_an_error_in_bounded_time(
    server: StandInServer, fault: str, says: str
) -> None:
    server.fault = fault
    began = time.monotonic()
    with pytest.raises(ServerError, match=f"^W&B at {server.url} {says}"):
        ask(server.url, KEY, {"project": "p", "entity": None, "id": "abc123"}, seconds=0.5)
    assert time.monotonic() - began < 3


def test_a_proxy_is_asked_for_other_machines_only(
    server: StandInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    place = {"project": "p", "entity": None, "id": "abc123"}
    assert ask("http://wandb.example.org", KEY, place, seconds=5) == OnServer()
    assert server.requests == ["http://wandb.example.org/graphql"]
    monkeypatch.setenv("http_proxy", closed_port())
    assert ask(server.url, KEY, place, seconds=5) == OnServer()


def test_a_key_of_nobody_is_refused(server: StandInServer) -> None:
    with pytest.raises(ServerError, match="refuses the key"):
        ask(server.url, "f" * 40, {"project": "p", "entity": None, "id": "abc123"}, seconds=5)


def test_what_is_no_wandb_server_is_an_error(server: StandInServer) -> None:
    server.fault = "200"
    with pytest.raises(ServerError, match="does not answer as W&B does"):
        ask(server.url, KEY, {"project": "p", "entity": None, "id": "abc123"}, seconds=5)


FAULTS = {
    "no key": "there is no key; to log in: `wandb login`",
    "nobody": "cannot be reached (",
    "lost": "W&B did not take everything. Call tl sync again",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What `tl sync` says of each fault."""
    with contextlib.ExitStack() as stack:
        processes: dict[str, subprocess.Popen[str]] = {}
        for fault in FAULTS:
            server, folder = StandInServer(), a_run(tmp_path_factory.mktemp("runs") / "run")
            stack.callback(server.close)
            environ = {}
            if fault == "no key":
                environ["WANDB_API_KEY"] = ""
            elif fault == "nobody":
                environ["WANDB_BASE_URL"] = closed_port()
            else:
                server.fault = "stream/404"
            processes[fault] = begin_sync(folder, server=server, **environ)
            stack.callback(processes[fault].kill)
        yield {fault: ended(process, code=2) for fault, process in processes.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_keeps_a_run_from_being_sent_is_said_in_one_line(
    told: dict[str, str], fault: str
) -> None:
    assert told[fault].startswith("error: ")
    assert FAULTS[fault] in told[fault]
    assert told[fault].count("\n") == 1


def test_a_folder_does_not_say_where_the_key_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: StandInServer
) -> None:
    folder = a_run(tmp_path)
    arguments = read_record(folder, {}).arguments
    monkeypatch.setattr(logic, "server_and_key", lambda environ: (server.url, KEY))
    monkeypatch.setattr(logic, "_mode", lambda environ: "online")
    said: list[str] = []
    write_place(folder, arguments, server.url, "link")
    logic.sync([folder], dry_run=True, say=said.append)
    assert said == [f"{folder}: 2 of 2 lines would be sent"]
    write_place(folder, arguments, "https://wandb.example.org", "link")
    with pytest.raises(UserError, match=r"Set WANDB_BASE_URL=https://wandb\.example\.org"):
        logic.sync([folder], dry_run=True, say=said.append)


def test_where_a_run_has_been_is_kept_while_it_is_offline_and_not_for_another_run(
    tmp_path: Path,
) -> None:
    arguments = read_record(a_run(tmp_path), {}).arguments
    write_place(tmp_path, arguments, "https://wandb.example.org", "link")
    write_place(tmp_path, {**arguments, "name": "new"})
    assert read_place(tmp_path)["link"] == "link"
    assert read_place(tmp_path)["name"] == "new"
    write_place(tmp_path, {**arguments, "project": "another"})
    assert (read_place(tmp_path)["server"], read_place(tmp_path)["link"]) == ("", "")


def test_a_run_that_cannot_be_sent_does_not_keep_the_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: StandInServer
) -> None:
    moved, fine = a_run(tmp_path / "moved"), a_run(tmp_path / "fine")
    write_place(moved, read_record(moved, {}).arguments, "https://wandb.example.org", "link")
    monkeypatch.setattr(logic, "server_and_key", lambda environ: (server.url, KEY))
    monkeypatch.setattr(logic, "_mode", lambda environ: "online")
    said: list[str] = []
    with pytest.raises(UserError, match="moved"):
        logic.sync([moved, fine], dry_run=True, say=said.append)
    assert said == [f"{fine}: 2 of 2 lines would be sent"]
    server.fault = "500"  # the same for all: no use to ask for each
    with pytest.raises(UserError, match="answers 500"):
        logic.sync([fine, fine], dry_run=True, say=said.append)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("missing", "says"),
    [("config.yaml", "no config.yaml"), ("run_id", "no run_id"), ("", "WANDB_MODE=disabled")],
)
def test_no_run_and_wandb_that_is_off_are_mistakes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    says: str,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    whole, other = a_run(tmp_path / "whole"), a_run(tmp_path / "other")
    if missing:
        (other / missing).unlink()
    assert entry.main([str(whole), str(other)]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert str(other) in told or not missing


def test_files_that_are_not_as_they_were_written_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"metrics.jsonl": "x\n", "summary.json": "{", "wandb.json": "{}"}.items():
        folder = a_run(tmp_path / name)
        (folder / name).write_text(text)
        assert entry.main([str(folder)]) == 2
        assert str(folder / name) in capsys.readouterr().err


def test_a_torn_last_line_is_left_for_later(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ti')
    assert [position for position, _ in read_record(folder, {}).rows] == [100, 101]


def test_the_arguments_are_those_of_the_run_and_its_strategys_code_is_not_run(
    tmp_path: Path,
) -> None:
    folder = a_run(tmp_path / "run", "seed=3")
    sentinel = tmp_path / "ran"
    code = f"cProfile:run(__import__('os').mkdir('{sentinel}'))"
    text = (folder / "config.yaml").read_text().replace("strategy: head", f"strategy: {code}")
    assert code in text
    (folder / "config.yaml").write_text(text)
    arguments = read_record(folder, {"WANDB_PROJECT": "theirs"}).arguments
    assert not sentinel.exists()
    assert arguments["config"]["strategy"] == code
    assert arguments["config"]["seed"] == 3
    assert arguments["project"] == "theirs"
    config = arguments["config"]["tracking"]["wandb"]
    assert config["project"] == "transfer-launcher"
    info = RunInfo(arguments["config"], folder, "abc123", 0)
    assert arguments == init_arguments(WandbConfig(**config), info, {"WANDB_PROJECT": "theirs"})
