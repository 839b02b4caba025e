"""Files written by a thread of its own: training waits for the copy of its tensors, no longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Writer:
    """Does one job after another in the background. One that fails leaves its error behind."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        """of the last job that failed, until the caller takes it away"""
        self.slowest = 0.0
        """seconds of the slowest job"""
        self.last_began = time.monotonic()
        """when the last job began; at first, when this was made"""
        self._thread: threading.Thread | None = None

    def start(self, job: Callable[[], None], began: float) -> None:
        """Begin with a job, once the one before is done.

        Args:
            began: when the caller began to prepare it (`time.monotonic`).
        """
        self.wait()
        self.last_began = began
        self._thread = threading.Thread(target=self._do, args=(job,), name="writer", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # raised in a thread, it would only be printed
            self.error = error
        self.slowest = max(self.slowest, time.monotonic() - self.last_began)
