"""What makes a process ask for a stop, and when."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tl.arguments import load
from tl.config import Config
from tl.engine import stop_requests
from tl.engine.stop_requests import SPARE_SECONDS, StopRequests, deadline_of


def config(*overrides: str) -> Config:
    return load(None, overrides, environ={}).config


def test_nothing_is_no_reason() -> None:
    requests = StopRequests(launcher=os.getppid(), deadline=time.time() + 1000)
    assert not requests.look()
    assert requests.reason == ""


def test_a_launcher_that_is_gone_is_a_reason() -> None:
    requests = StopRequests(launcher=os.getppid() + 1)
    assert requests.look()
    assert requests.reason == "the launcher is gone"


def test_a_file_is_a_reason_until_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "stop"
    assert not StopRequests(stop_file=path).look()
    path.touch()
    requests = StopRequests(stop_file=path)
    assert requests.look()
    assert str(path) in requests.reason
    requests.forget_file()
    requests.forget_file()
    assert not StopRequests(stop_file=path).look()


def test_it_stops_earlier_the_longer_checkpoints_and_steps_take() -> None:
    """Two looks may pass until all know; a checkpoint may have to wait for another."""
    requests = StopRequests(deadline=time.time() + 1000)
    assert requests.margin() == SPARE_SECONDS
    requests.look()
    time.sleep(0.05)
    requests.look()
    assert SPARE_SECONDS + 0.1 <= requests.margin() < SPARE_SECONDS + 2
    requests.seconds_to_save = 300.0
    assert requests.margin() > SPARE_SECONDS + 600
    assert not requests.look()
    requests.seconds_to_save = 500.0
    assert requests.look()
    assert requests.reason == "the time limit is near"


def test_the_first_reason_stays() -> None:
    requests = StopRequests(launcher=os.getppid() + 1, deadline=0.0)
    requests.look()
    requests.look()
    assert requests.reason == "the launcher is gone"


# -------------------------------------------------------------------------------------- deadlines


def test_the_configs_limit_counts_from_the_start_of_the_process() -> None:
    assert deadline_of(config("time_limit=1h30m"), started=1000.0) == 1000.0 + 5400


def test_without_a_limit_or_slurm_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert deadline_of(config(), started=0.0) is None


def test_slurms_limit_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1795634162")
    assert deadline_of(config(), started=0.0) == 1795634162.0
    assert deadline_of(config("time_limit=60s"), started=5.0) == 65.0
    assert deadline_of(config("time_limit=none"), started=0.0) is None


@pytest.mark.parametrize(
    ("left", "seconds"),
    [("1-02:03:04", 93784), ("2:03:04", 7384), ("03:04", 184), ("0:09", 9)],
)
def test_an_older_slurm_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: str, seconds: int
) -> None:
    """The format is that of squeue of Slurm 22.05; a real one is asked in the cluster's tests."""
    _squeue(tmp_path, f"echo {left}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    deadline = deadline_of(config(), started=0.0)
    assert deadline is not None
    assert abs(deadline - time.time() - seconds) < 5


@pytest.mark.parametrize("script", ["echo UNLIMITED", "exit 1", "echo INVALID"])
def test_a_slurm_that_knows_no_limit_gives_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    _squeue(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert deadline_of(config(), started=0.0) is None


def _squeue(folder: Path, script: str) -> None:
    path = folder / "squeue"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# ---------------------------------------------------------------------------------------- signals


LISTEN = """
import hashlib, sys, time
from tl.engine.stop_requests import StopRequests
requests = StopRequests(say=lambda text: print(text, flush=True))
with requests.listening(lambda message: print("last words", flush=True)):
    print("ready", flush=True)
    if sys.argv[1] == "busy":
        # As in a collective operation: the main thread runs no handler of Python's.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    deadline = time.monotonic() + 20
    while not requests.look() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(float(sys.argv[1]))
print(requests.reason)
"""


@contextlib.contextmanager
def listener(what: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, what],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", stop_requests.SIGNALS)
def test_a_signal_is_a_reason_and_an_echo_of_it_no_second_one(number: signal.Signals) -> None:
    with listener("0.5") as process:
        process.send_signal(number)
        time.sleep(0.05)
        process.send_signal(number)  # as a launcher passes on what a terminal has sent to all
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert out.splitlines()[-1] == number.name
    assert "a second signal ends it at once" in out


def test_a_second_signal_ends_the_process_whatever_it_does() -> None:
    with listener("busy") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(1.3)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT
    assert "last words" in out
    assert "ended at once by a second signal, SIGINT" in errors


def test_a_signal_to_a_child_is_none_to_its_parent() -> None:
    """A loader worker that was just forked still has the handlers of the run."""
    requests = StopRequests()
    with requests.listening(lambda message: None):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.05)
        assert not requests.look()
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.05)
        assert requests.look()


def test_a_signal_that_was_ignored_stays_so() -> None:
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        requests = StopRequests()
        with requests.listening(lambda message: None):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not requests.look()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_signals_did_before_they_do_again() -> None:
    before = {number: signal.getsignal(number) for number in stop_requests.SIGNALS}
    requests = StopRequests()
    with requests.listening(lambda message: None):
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in stop_requests.SIGNALS} == before
    assert signal.set_wakeup_fd(-1) == -1
