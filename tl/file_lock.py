"""A lock between processes: the system's own, on a file."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable
from typing import TextIO


def lock(file: TextIO, seconds: float, waits: Callable[[], None] = lambda: None) -> bool:
    """Lock a file that is open for writing; false if another process keeps it for ``seconds``.

    The lock ends when the file is closed, or with the process, however that ends; forked children
    do not hold it. Where a file system has no locks, as some network ones, there is nobody to wait
    for. ``waits`` is called once, if there is.
    """
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # which depends on the system
                return True
        if time.monotonic() > deadline:
            return False
        if not told:
            waits()
            told = True
        time.sleep(0.2)
