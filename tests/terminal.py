"""A real terminal for a program: a pty, and an emulator (pyte) that knows what is on the screen."""

from __future__ import annotations

import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Self

import pyte

ROOT = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """That of somebody at an ordinary terminal."""
    none = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CI", "TTY_INTERACTIVE")
    environ = {k: v for k, v in os.environ.items() if k not in none}
    usual = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    return {**environ, **usual, **more}


class Terminal:
    """Runs a program in a terminal of its own, of which it is the session's first process."""

    def __init__(
        self, command: Sequence[str], columns: int = 80, lines: int = 24, **more: str
    ) -> None:
        """``more``: variables of the environment."""
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.bytes = b""
        self._ours, theirs = pty.openpty()
        self._set_size(columns, lines)
        self.process = subprocess.Popen(
            command,
            env=environment(**more),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)

    def rows(self) -> list[str]:
        """What is on the screen, from the top, without blanks at the ends."""
        return [row.rstrip() for row in self.screen.display]

    def everything(self) -> list[str]:
        """The rows that have scrolled out at the top, and those on the screen."""
        gone = [
            "".join(row[i].data for i in range(self.screen.columns)).rstrip()
            for row in self.screen.history.top
        ]
        return gone + self.rows()

    def show(self, what: bytes) -> None:
        """As another program does that has the terminal."""
        self._stream.feed(what)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """As a window does: what does not fit any more has scrolled out."""
        self._set_size(columns, lines)
        self.screen.resize(lines, columns)

    def run_until(self, wanted: Callable[[list[str]], bool], seconds: float = 60) -> None:
        """Go on until the screen is as wanted."""
        deadline = time.monotonic() + seconds
        while not wanted(self.rows()):
            assert time.monotonic() < deadline, "\n".join(self.rows())
            assert self._feed(), "it has ended before: " + "\n".join(self.rows())

    def run_to_the_end(self, seconds: float = 60) -> int:
        """Returns the exit code."""
        deadline = time.monotonic() + seconds
        while self._feed():
            assert time.monotonic() < deadline, "\n".join(self.rows())
        return self.process.wait(timeout=seconds)

    def _feed(self) -> bool:
        """Show what comes within a short while; False if there is nobody left to write."""
        if select.select([self._ours], [], [], 0.05)[0]:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # the last holder of the other end has gone
                return False
            self.bytes += part
            self.show(part)
            return bool(part)
        return True

    def _set_size(self, columns: int, lines: int) -> None:
        ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
