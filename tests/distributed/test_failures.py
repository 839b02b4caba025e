"""Signals to a launcher and to its processes, and processes that die or hang, for real.

Each test starts `accelerate launch` with two processes, lets them train, and does one thing to one
of them. Whatever it is, the run ends in time, says why, leaves no process, and can go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tl.engine import checkpoint

ROOT = Path(__file__).parents[2]
LAUNCH = [
    str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu",
    "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
HANG_SECONDS = 8
ARGUMENTS = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=13",
    "data.max_val=7",
    "data.workers=1",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "strategy=head",
    "objective=outside_objectives:Eventful",
    "global_batch_size=8",
    "epochs=1000000",
    f"hang_timeout={HANG_SECONDS}s",
]


@dataclass
class Job:
    """A launcher and what it has started."""

    launcher: subprocess.Popen[str]
    ranks: dict[int, psutil.Process]
    everyone: list[psutil.Process]
    run_dir: Path

    def wait(self, seconds: float) -> str:
        """Until all processes are gone; returns what was written to standard error."""
        deadline = time.monotonic() + seconds
        _, errors = self.launcher.communicate(timeout=seconds)
        while alive := [p for p in self.everyone if p.is_running() and p.status() != "zombie"]:
            assert time.monotonic() < deadline, f"still there: {alive}"
            time.sleep(0.05)
        return errors

    def status(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "status.json").read_text())


@contextlib.contextmanager
def started(run_dir: Path, *arguments: str, event: str = "") -> Iterator[Job]:
    """A job that trains: its first steps are done. Whatever is left of it at the end is killed."""
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        **({"TEST_EVENT": event} if event else {}),
    }
    launcher = subprocess.Popen(
        [*LAUNCH, str(ROOT / "launch" / "train.py"), *ARGUMENTS, f"run_dir={run_dir}", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    everyone = [psutil.Process(launcher.pid)]
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.committed(run_dir / "checkpoints"):
            assert launcher.poll() is None, launcher.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        everyone += everyone[0].children(recursive=True)
        ranks = {
            int(child.environ()["RANK"]): child
            for child in everyone[0].children()
            if "RANK" in child.environ()
        }
        assert sorted(ranks) == [0, 1]
        yield Job(launcher, ranks, everyone, run_dir)
    finally:
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.wait()


@pytest.mark.slow
def test_sigterm_to_the_launcher_ends_in_a_checkpoint(tmp_path: Path) -> None:
    with started(tmp_path / "run") as job:
        job.launcher.send_signal(signal.SIGTERM)
        job.wait(60)
        assert job.launcher.returncode != 0
        stopped = job.status()
        assert (stopped["state"], stopped["exit_code"]) == ("preempted", 75)
        assert "SIGTERM" in stopped["message"]
        newest = checkpoint.newest(tmp_path / "run" / "checkpoints", print)
        assert newest == tmp_path / "run" / "checkpoints" / f"step-{stopped['step']}"


@pytest.mark.slow
def test_a_launcher_that_sigusr1_kills_leaves_no_orphans(tmp_path: Path) -> None:
    with started(tmp_path / "run") as job:
        job.launcher.send_signal(signal.SIGUSR1)
        job.wait(60)
        assert job.launcher.returncode == -signal.SIGUSR1
        assert job.status()["state"] == "preempted"
        assert "the launcher is gone" in job.status()["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 1)])
def test_a_signal_to_one_rank_stops_all(tmp_path: Path, number: signal.Signals, rank: int) -> None:
    """Without a launcher each of four signals, to any rank, see `test_interruptions.py`."""
    with started(tmp_path / "run") as job:
        job.ranks[rank].send_signal(number)
        errors = job.wait(60)
        assert (job.status()["state"], job.status()["exit_code"]) == ("preempted", 75)
        assert number.name in job.status()["message"]
        assert errors.count("stopped after step") == 1  # said by the main process alone
        assert "error:" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named_and_ends_the_job(tmp_path: Path, rank: int) -> None:
    with started(tmp_path / "run") as job:
        killed = job.ranks[rank]
        killed.kill()
        since = time.monotonic()
        errors = job.wait(60)
        assert time.monotonic() - since < 30
        said = [line for line in errors.splitlines() if line.startswith("error:")]
        assert len(said) == 1, errors
        assert f"rank {rank} (process {killed.pid} on " in said[0]
        assert "is gone" in said[0]
        assert job.status()["state"] == "failed"
        assert f"rank {rank}" in job.status()["message"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_ends_the_job(tmp_path: Path, rank: int) -> None:
    with started(tmp_path / "run") as job:
        stopped = job.ranks[rank]
        stopped.suspend()
        errors = job.wait(90)
        said = [line for line in errors.splitlines() if line.startswith("error:")]
        assert len(said) == 1, errors
        assert f"rank {rank} (process {stopped.pid} on " in said[0]
        assert "has not answered" in said[0]
        stacks = (tmp_path / "run" / "stacks" / f"rank-{1 - rank}.txt").read_text()
        assert "train_phase" in stacks
        assert job.status()["state"] == "failed"
        assert f"rank {rank}" in job.status()["message"]


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_the_stacks_of_all(tmp_path: Path) -> None:
    """Its process lives, and its main thread does not get on."""
    with started(tmp_path / "run", "epochs=100", event="head 0.02 1 hang") as job:
        errors = job.wait(120)
        said = [line for line in errors.splitlines() if line.startswith("error:")]
        assert len(said) == 1, errors
        assert f"no process has got on for {HANG_SECONDS} s" in said[0]
        # Both wait in the same step; the stacks tell which for what.
        for rank, where in ((0, "train_phase"), (1, "_happens")):
            assert where in (tmp_path / "run" / "stacks" / f"rank-{rank}.txt").read_text()


@pytest.mark.slow
def test_a_rank_that_fails_speaks_and_the_others_do_not(tmp_path: Path) -> None:
    with started(tmp_path / "run", "epochs=100", event="head 0.02 1 raise") as job:
        errors = job.wait(60)
        assert errors.count("error on rank") == 1, errors
        assert "error on rank 1: ValueError: out of luck" in errors
        assert "gloo" not in errors
        assert job.status()["message"] == "ValueError: out of luck"


@pytest.mark.slow
def test_a_second_signal_ends_a_process_at_once(tmp_path: Path) -> None:
    """One that cannot get to the end of its step, as it hangs in it."""
    with started(tmp_path / "run", "epochs=100", event="head 0.02 1 hang") as job:
        time.sleep(3)  # by then it does
        since = time.monotonic()
        for process in job.ranks.values():
            process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        for process in job.ranks.values():
            process.send_signal(signal.SIGTERM)
        errors = job.wait(30)
        assert time.monotonic() - since < 15
        assert "ended at once by a second signal, SIGTERM" in errors
        assert job.status()["state"] == "failed"
