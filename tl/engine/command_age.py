"""How long ago the command was given that this process is a part of."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from tl.engine import runtime


def seconds_since_command() -> float:
    """Wall seconds since this process was created, or the launcher that started it."""
    try:
        return age(runtime.launcher() or os.getpid())
    except psutil.Error:  # the launcher has just died, which is no reason to die as well
        return age(os.getpid())


def age(pid: int) -> float:
    """Wall seconds since a process was created, to a hundredth of a second or so.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    process = psutil.Process(pid)
    if not sys.platform.startswith("linux"):
        return time.time() - process.create_time()
    # There `create_time` adds the boot time, which the kernel says in whole seconds.
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        raise psutil.NoSuchProcess(pid) from None
    ticks = int(after_name[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
