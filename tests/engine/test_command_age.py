"""The time from the command to the first step."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from tl.engine.command_age import age


def test_the_age_of_a_process_is_the_time_since_it_was_started() -> None:
    before = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    after = time.monotonic()
    try:
        time.sleep(0.3)
        youngest = time.monotonic() - after
        measured = age(child.pid)
        oldest = time.monotonic() - before
    finally:
        child.communicate(b"\n")
    # The kernel counts in ticks, of a hundredth of a second mostly.
    assert youngest - 0.02 <= measured <= oldest + 0.02


def test_there_is_no_age_of_a_process_that_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(psutil.NoSuchProcess):
        age(child.pid)
