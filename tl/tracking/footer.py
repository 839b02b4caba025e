"""Rows at the bottom of a terminal that stay there, whoever else writes to it.

Everything above them is a scroll region of the terminal's own (DECSTBM, as apt has it). So what a C
library, a loader's worker or another process of the run writes scrolls above the rows, by itself
and untouched, and is on the screen whatever becomes of this process. rich's Live draws where the
cursor is: a line from outside begins in the middle of its rows, and its next drawing wipes it out.
The cursor stays where the others write, and visible.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable

ROWS = 3
FEWEST_LINES, FEWEST_COLUMNS = 8, 20
"""In a smaller terminal nothing is drawn, until it is larger."""
SECONDS_BETWEEN = 0.5
SUSPENDED_SECONDS = 2.0
"""A drawing that comes so much too late: the process was stopped, and others had the terminal."""

SAVE, RESTORE, NO_REGION, WIPE_BELOW, DOWN = "\x1b7", "\x1b8", "\x1b[r", "\x1b[J", "\x1bD"

_open: Footer | None = None


def restore_terminal() -> None:
    """Leave the terminal of this process in order, with the last state on it; from any thread."""
    if _open is not None and _open.pid == os.getpid():  # not a fork's business
        _open.close(keep=True)


atexit.register(restore_terminal)


class Footer:
    """Draws `ROWS` rows twice a second, 0.6 ms each, in a thread of its own, until it is closed.

    Each drawing is one write, which a terminal takes as a whole: nobody's text gets in between.
    """

    def __init__(self, fd: int, encoding: str, draw: Callable[[int], list[str]]) -> None:
        """``draw`` is given a width in columns, and returns the rows, none wider than that."""
        self.pid = os.getpid()
        self._fd, self._encoding = fd, encoding
        self._draw = draw
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._size: tuple[int, int] | None = None
        """columns and lines that the region was set for; None: there is none"""
        self._drawn = ""
        self._thread = threading.Thread(target=self._keep_drawing, name="footer", daemon=True)

    def open(self) -> None:
        """Take the last rows of the screen."""
        global _open
        _open = self
        self.refresh()
        self._thread.start()

    def refresh(self, anew: bool = False) -> None:
        """Draw what has changed; everything if the terminal has another size, or ``anew``."""
        with self._lock:
            if not self._over.is_set():
                self._refresh(anew)

    @property
    def is_shown(self) -> bool:
        return self._size is not None

    def fresh_line(self) -> None:
        """Go to the next line, unless the cursor is at the start of one, as after a ``^C``."""
        with self._lock:
            if self._size is not None:
                self._write(_fresh_line(self._size[0]))

    def close(self, keep: bool) -> None:
        """Give the rows back; with ``keep`` what they say stays there as text.

        Waits for no other thread for long, as it is also called when a process ends at once.
        """
        global _open
        if self._over.is_set():
            return
        self._over.set()
        _open = None
        locked = self._lock.acquire(timeout=1)  # the terminal may be stopped, by Ctrl-S say
        try:
            if self._size is None:
                return
            columns, self._size = self._size[0], None
            rows = "".join(f"{row}\r\n" for row in self._draw(columns)) if keep else ""
            self._write(_without_region() + _fresh_line(columns) + rows)
        finally:
            if locked:
                self._lock.release()

    def _keep_drawing(self) -> None:
        now = time.monotonic()
        while not self._over.wait(SECONDS_BETWEEN):
            before, now = now, time.monotonic()
            self.refresh(anew=now - before > SUSPENDED_SECONDS)

    def _refresh(self, anew: bool) -> None:
        try:
            columns, lines = os.get_terminal_size(self._fd)
        except OSError:  # it has been closed
            self._size = None
            return
        fits = lines >= FEWEST_LINES and columns >= FEWEST_COLUMNS and _in_front(self._fd)
        if not fits:
            if self._size is not None:
                self._write(_without_region())
                self._size = None
            return
        rows = "".join(
            f"\x1b[{lines - ROWS + i};1H\x1b[2K{row}"
            for i, row in enumerate(self._draw(columns), start=1)
        )
        drawing = f"{SAVE}{rows}{RESTORE}"
        if anew or self._size != (columns, lines):
            # Below the cursor there is nothing but these rows where they were. Those that are to
            # be above them make room first; DOWN scrolls at the end of the screen.
            room = f"{WIPE_BELOW}{DOWN * ROWS}\x1b[{ROWS}A"
            region = f"{SAVE}\x1b[1;{lines - ROWS}r{RESTORE}"
            drawing = f"{_without_region()}{room}{region}{drawing}"
        elif drawing == self._drawn:
            return
        self._size, self._drawn = (columns, lines), drawing
        self._write(drawing)

    def _write(self, text: str) -> None:
        """Nothing that happens to a terminal may end a run."""
        with contextlib.suppress(OSError):
            os.write(self._fd, text.encode(self._encoding, "replace"))


def _without_region() -> str:
    """Setting one moves the cursor."""
    return f"{SAVE}{NO_REGION}{RESTORE}{WIPE_BELOW}"


def _fresh_line(columns: int) -> str:
    """So many blanks reach the next line from anywhere but the start of one."""
    return f"{' ' * (columns - 1)}\r\x1b[K"


def _in_front(fd: int) -> bool:
    """False in the background of a shell, whose user works on something else."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # not the terminal of this process's session; a launcher starts sessions
        return True
