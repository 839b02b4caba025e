"""Weights & Biases: a view of the run, which can neither fail nor stall it."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tl.config import WandbConfig
from tl.tracking.tracker import Metrics, RunInfo, one_line
from tl.tracking.wandb_settings import (
    Mode,
    init_arguments,
    key_for,
    quiet_settings,
    resolve_mode,
)

INIT_SECONDS = 30.0
"""how long the server may take to answer before the run is recorded offline"""
WAIT_AT_START_SECONDS = 5.0
"""how long the training waits for that, so that the link stands at the top of a log"""
FINISH_SECONDS = 20.0
"""how long the last upload may take"""
WAITING_LINES = 10_000
"""lines that may wait for a server that does not answer yet"""
EXIT_CODES = {"done": 0, "failed": 1, "preempted": 75}


class WandbTracker:
    """Sends metrics to W&B from a thread of its own.

    Everything that wandb does can wait for a network: `init`, `finish`, and `log` once its
    buffers are full. So one thread does all of it, takes its work from a queue, and the training
    waits for it nowhere without a limit. The thread's error is raised by the next call, for
    `Trackers` to switch this tracker off.

    ``step`` is a metric like the others and the axis of all of them. wandb's own step would drop
    what is logged for a step that it has closed: the evaluation after a line of training.
    """

    def __init__(
        self,
        config: WandbConfig,
        say: Callable[[str], None],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._say = say
        self._environ = os.environ if environ is None else environ
        self._work: queue.Queue[Callable[[Any], None] | None] = queue.Queue(WAITING_LINES)
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._folder = ""
        self._link = ""
        self._sent_step = -1

    def start(self, run: RunInfo) -> None:
        """Open the run in the background. Waits a few seconds at most."""
        mode, why = resolve_mode(self._config.mode, self._environ, self._has_key)
        if why:
            self._say(why)
        if mode == "disabled":
            return
        arguments = init_arguments(self._config, run, self._environ)
        _set_up()  # imports wandb here, since two threads that import at once can fail
        self._thread = threading.Thread(
            target=self._run, args=(mode, arguments), name="wandb-tracker", daemon=True
        )
        self._thread.start()
        self._ready.wait(WAIT_AT_START_SECONDS)
        self._raise_error()

    def log(self, metrics: Metrics, step: int) -> None:
        """Queue one line. Never waits."""
        if self._thread is None:
            return
        self._raise_error()
        row = {"step": step, **metrics}

        def send(run: Any) -> None:
            # After a restart, steps since the checkpoint come again. The server has them.
            if step >= self._sent_step:
                run.log(row)

        try:
            self._work.put_nowait(send)
        except queue.Full:
            self._thread = None
            raise TimeoutError(f"W&B has left {WAITING_LINES} lines waiting") from None

    def finish(self, summary: dict[str, Any], state: str) -> None:
        """Send the summary and end the run. Waits for the upload, but not for long."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None

        def end(run: Any) -> None:
            run.summary.update(summary)
            if state == "preempted":
                run.mark_preempting()
            run.finish(exit_code=EXIT_CODES.get(state, 1))

        limit = FINISH_SECONDS
        if not self._ready.is_set() and state != "preempted":  # a scheduler's grace is short
            limit += INIT_SECONDS
        if self._error is None:
            for job in (end, None):
                self._work.put(job, timeout=FINISH_SECONDS)
            thread.join(limit)
        if thread.is_alive():
            place = self._folder or "its folder in wandb/"
            self._say(
                f"W&B did not take everything in time. To upload the rest: wandb sync {place}"
            )
        else:
            self._raise_error()
            self._say(f"W&B: {self._link or 'to upload the run: wandb sync ' + self._folder}")

    def _raise_error(self) -> None:
        if self._error is not None:
            self._thread = None
            raise self._error

    def _has_key(self) -> bool:
        settings = _set_up().setup().settings
        return bool(settings.api_key) or key_for(settings.base_url, self._environ)

    # ------------------------------------------------------------------------- in the thread

    def _run(self, mode: Mode, arguments: dict[str, Any]) -> None:
        try:
            run = self._open(mode, arguments)
            self._ready.set()
            while (job := self._work.get()) is not None:
                job(run)
        except Exception as error:
            self._error = error
            with contextlib.suppress(Exception):
                # Otherwise wandb tries once more when the process ends, and fails in many lines.
                import wandb

                wandb.teardown()
        finally:
            self._ready.set()

    def _open(self, mode: Mode, arguments: dict[str, Any]) -> Any:
        wandb = _set_up()
        settings = quiet_settings(wandb, INIT_SECONDS, FINISH_SECONDS)
        try:
            run = wandb.init(mode=mode, settings=settings, **arguments)
        except Exception as error:
            if mode == "offline":
                raise
            self._say(f"W&B cannot be reached, so the run is recorded offline: {one_line(error)}")
            # The service keeps the id of the run that failed to start; a fresh one does not.
            wandb.teardown()
            mode = "offline"
            _set_up()
            run = wandb.init(mode=mode, settings=settings, **arguments)
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._folder = run.settings.sync_dir
        if mode == "online":
            self._link = run.url or ""
            self._sent_step = int(run.summary.get("step", -1)) if run.resumed else -1
            self._say(f"W&B: {self._link}")
        else:
            self._say(f"W&B: offline, in {self._folder}")
        return run


def _set_up() -> Any:
    """The wandb module, told to be silent; to be called again after a teardown."""
    # wandb reports its own errors and timings to its makers. With a server that does not answer,
    # that alone keeps a process from ending for many seconds.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb
