"""Why a run should stop before its end: a signal, a file, its time limit, a launcher that is gone.

Whatever it is, it only sets a reason. The processes share it and stop together between two steps
(`tl.engine.agreement`), with a checkpoint. So none is lost, whichever process hears of it first.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tl.config import Config, seconds_of
from tl.tracking.footer import restore_terminal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
STOP_FILE = "stop"
"""in the run's folder: whoever makes it asks the run to stop"""
ECHO_SECONDS = 1.0
"""A launcher passes on a signal that a terminal has sent to all: the same request, twice."""
SECONDS_BETWEEN_LOOKS_FOR_THE_FILE = 1.0
SPARE_SECONDS = 10.0
"""of the time limit, for what is not measured: the record's last lines, the end of processes"""


class StopRequests:
    """Whether this process knows a reason to stop."""

    def __init__(
        self,
        *,
        launcher: int | None = None,
        stop_file: Path | None = None,
        deadline: float | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Only the main process is given a file and a deadline, and only it says anything.

        Args:
            launcher: process id of the launcher, if there is one; the run ends with it.
            deadline: when the time is over, in seconds since 1970.
        """
        self.reason = ""
        self.seconds_to_save = 0.0
        """How long the slowest checkpoint has taken so far."""
        self._launcher, self._stop_file, self._deadline = launcher, stop_file, deadline
        self._say = say
        self._signalled: float | None = None
        self._looked_for_file = 0.0
        self._last_look: float | None = None
        self._longest_gap = 0.0

    def look(self) -> bool:
        """Whether to stop. Called between two steps, and between two batches of an evaluation."""
        now = time.monotonic()
        if self._last_look is not None:
            self._longest_gap = max(self._longest_gap, now - self._last_look)
        self._last_look = now
        if not self.reason:
            self.reason = self._found(now)
        return bool(self.reason)

    def _found(self, now: float) -> str:
        if self._launcher is not None and os.getppid() != self._launcher:
            return "the launcher is gone"
        if self._deadline is not None and time.time() > self._deadline - self.margin():
            return "the time limit is near"
        if now - self._looked_for_file > SECONDS_BETWEEN_LOOKS_FOR_THE_FILE:
            self._looked_for_file = now
            if self._stop_file is not None and self._stop_file.exists():
                return f"{self._stop_file} is there"
        return ""

    def margin(self) -> float:
        """Seconds before the deadline at which to stop.

        Two looks may pass until all know, and a checkpoint may have to wait for another.
        """
        return SPARE_SECONDS + 2 * self._longest_gap + 2 * self.seconds_to_save

    @property
    def has_deadline(self) -> bool:
        return self._deadline is not None

    def forget_file(self) -> None:
        """Take the stop file away: it asked this start of the run to stop, not the next one."""
        if self._stop_file is not None:
            with contextlib.suppress(OSError):
                self._stop_file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def listening(self, last_words: Callable[[str], None]) -> Iterator[None]:
        """Take signals for requests while the block runs. A second one ends the process at once.

        They are read by a thread, which hears them also while this process waits for another one.
        Outside the main thread, where Python cannot do this, signals keep their meaning.

        Args:
            last_words: given a message when the process ends at once; may take two seconds.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        _keep_children_off_the_pipe()
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]  # nohup ignores one
        before = {number: signal.signal(number, lambda *_: None) for number in heard}
        fd_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        ear = threading.Thread(target=self._hear, args=(read_end, last_words), daemon=True)
        ear.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd_before)
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
            os.write(write_end, b"\0")
            ear.join()
            os.close(read_end)
            os.close(write_end)

    def _hear(self, read_end: int, last_words: Callable[[str], None]) -> None:
        while number := os.read(read_end, 1)[0]:
            if number not in SIGNALS:  # a child has ended, say
                continue
            name, now = signal.Signals(number).name, time.monotonic()
            if self._signalled is None:
                self._signalled = now
                self.reason = self.reason or name
                self._say(f"{name}: stopping with a checkpoint; a second signal ends it at once")
            elif now - self._signalled > ECHO_SECONDS:
                end_at_once(f"ended at once by a second signal, {name}", 128 + number, last_words)


@functools.cache  # once in a process: there is no way to take it back
def _keep_children_off_the_pipe() -> None:
    """A signal to a child that was just forked is not to be heard as one to this process."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def end_at_once(message: str, code: int, last_words: Callable[[str], None]) -> None:
    """End this process and its loader workers from any thread, whatever the main one waits for."""

    def speak() -> None:
        restore_terminal()
        if message:
            print(message, file=sys.stderr, flush=True)
        last_words(message)

    speaking = threading.Thread(target=speak, daemon=True)
    speaking.start()
    speaking.join(timeout=2)  # a terminal that was stopped, or a disk, may hang
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def deadline_of(config: Config, started: float) -> float | None:
    """When the run has to be over, in seconds since 1970: as configured, or as Slurm will end it.

    Args:
        started: when this process began.
    """
    if config.time_limit == "none":
        return None
    if config.time_limit is not None:
        return started + seconds_of(config.time_limit)
    if "SLURM_JOB_ID" not in os.environ:
        return None
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end)
    return _ask_slurm(os.environ["SLURM_JOB_ID"])


def _ask_slurm(job: str) -> float | None:
    """Slurm before 23.02 does not put the end of a job into its environment."""
    command = ["squeue", "--noheader", "--format=%L", "--jobs", job]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        left = asked.stdout.strip()
        return time.time() + seconds_of(left if left.count(":") > 1 else f"0:{left:0>5}")
    except (OSError, subprocess.SubprocessError, ValueError):  # no squeue; UNLIMITED
        return None
