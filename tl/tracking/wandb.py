"""Weights & Biases: a view of the run, which can neither fail nor stall it."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tl.config import WandbConfig
from tl.tracking import jsonl
from tl.tracking.tracker import Metrics, RunInfo, one_line
from tl.tracking.wandb_extras import send_models, send_tables, staged_in
from tl.tracking.wandb_place import note_whole, only_sender, read_place, write_place
from tl.tracking.wandb_rows import Positions, Row, rows_of
from tl.tracking.wandb_server import ServerError, ask
from tl.tracking.wandb_service import (
    Sender,
    abandon_service,
    has_credentials,
    kill_service,
    open_run,
    server_and_key,
    set_up,
)
from tl.tracking.wandb_settings import Mode, init_arguments, quiet_settings, resolve_mode

INIT_SECONDS = 30.0
"""how long the server may take to answer before the run is recorded offline"""
FINISH_SECONDS = 20.0
"""how long the last upload may take"""
MODEL_SECONDS = 120.0
"""how long the upload of each model may take, if there is one"""
ANSWER_SECONDS = 5.0
"""how long the server may take to say what it has, at the end"""
WAITING_LINES = 10_000
"""lines that may wait for a server that does not answer yet"""
EXIT_CODES = {"done": 0, "failed": 1, "preempted": 75}


class WandbError(Exception):
    """W&B has failed; says how to send the run later."""


class WandbTracker:
    """Sends metrics to W&B from a thread of its own.

    Everything that wandb does can wait for a network: `init`, `finish`, and `log` once its
    buffers are full. So one thread does all of it, takes its work from a queue, and the training
    waits for it nowhere without a limit. The thread's error is raised by the next call, for
    `Trackers` to switch this tracker off.

    What the server has of a run is always the beginning of its record: rows are sent in order, and
    a run that goes on sends what the server lacks of the record before anything new. Steps since
    the checkpoint come again after a crash; of these, what the server has is not sent again. A run
    that falls back to offline stays so until it ends or restarts, and sends nothing.
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
        self._work: queue.Queue[Callable[[Sender], None]] = queue.Queue(WAITING_LINES)
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._over = False
        self._error: Exception | None = None
        self._run_dir = Path()
        self._arguments: dict[str, Any] = {}
        self._chosen: dict[str, Any] = {}
        self._folder = ""
        self._link = ""
        self._positions = Positions()
        self._earlier: list[Row] = []
        self._complete = False

    def start(self, run: RunInfo) -> None:
        """Open the run in the background: that takes seconds, for which training does not wait."""
        mode, why = resolve_mode(
            self._config.mode, self._environ, lambda: has_credentials(self._environ)
        )
        if why:
            self._say(why)
        if mode == "disabled":
            return
        self._run_dir = run.run_dir
        earlier = read_place(run.run_dir) if run.resumed else {}
        self._arguments = init_arguments(self._config, run, self._environ, earlier)
        self._chosen = run.config["best"]
        write_place(run.run_dir, self._arguments)
        if run.resumed:
            # The record has been taken back to the checkpoint by now; see Trackers.
            record = jsonl.read(run.run_dir / jsonl.FILE)
            lines = [line for line in record if line["step"] <= run.start_step]
            self._earlier = rows_of(lines, self._positions)
        set_up()  # imports wandb here, since two threads that import at once can fail
        self._thread = threading.Thread(
            target=self._run, args=(mode,), name="wandb-tracker", daemon=True
        )
        self._thread.start()

    def log(self, metrics: Metrics, step: int) -> None:
        """Queue one line. Never waits for W&B."""
        if self._thread is None:
            return
        self._raise_error()
        row = self._positions.row({"step": step, **metrics})
        try:
            self._work.put_nowait(lambda sender: sender.send(row))
        except queue.Full:
            thread, self._thread = self._thread, None
            self._give_up(thread)
            raise WandbError(f"{WAITING_LINES} lines wait for W&B; {self._later()}") from None

    def finish(self, summary: dict[str, Any], state: str) -> None:
        """Send the summary and end the run. Waits for the upload, but not for long."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        limit = FINISH_SECONDS
        if not self._ready.is_set() and state != "preempted":  # a scheduler's grace is short
            limit += INIT_SECONDS
        if state == "done" and self._link and self._config.model != "none":
            limit += MODEL_SECONDS * (2 if self._config.model == "both" else 1)
        deadline = time.monotonic() + limit
        if self._error is None:
            with contextlib.suppress(queue.Full):
                self._work.put(lambda sender: self._end(sender, summary, state), timeout=limit)
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            self._give_up(thread)
        else:
            self._raise_error()
        if not self._complete:
            self._say(f"W&B did not take everything; {self._later()}")
        elif self._link:
            self._say(f"W&B: {self._link}")
        else:
            self._say(f"W&B: {self._later()}")

    def _give_up(self, thread: threading.Thread) -> None:
        """Let the thread fail, which is a matter of milliseconds, and tidy up after itself."""
        self._over = True
        kill_service()
        thread.join(1.0)

    def _raise_error(self) -> None:
        if self._error is not None:
            self._thread = None
            raise WandbError(f"{one_line(self._error)}; {self._later()}") from self._error

    def _later(self) -> str:
        if (self._run_dir / jsonl.FILE).exists():
            return f"to send the run later: tl sync {self._run_dir}"
        return f"to upload the rest: wandb sync {self._folder or 'its folder in wandb/'}"

    # ------------------------------------------------------------------------- in the thread

    def _run(self, mode: Mode) -> None:
        try:
            with contextlib.ExitStack() as held:
                sender = self._open(mode, held)
                self._ready.set()
                while not self._over:
                    self._work.get()(sender)
        except Exception as error:
            self._error = error
            abandon_service()
        finally:
            self._ready.set()

    def _open(self, mode: Mode, held: contextlib.ExitStack) -> Sender:
        if mode == "online":
            if held.enter_context(only_sender(self._run_dir, INIT_SECONDS)):
                try:
                    return self._open_online()
                except Exception as error:
                    if self._over:
                        raise
                    why = f"W&B cannot be reached ({one_line(error)})"
                    # The service keeps the id of the run that failed to start; a new one does not.
                    abandon_service()
            else:
                why = "W&B: another process is sending this run"
            self._link = ""
            held.close()  # for `tl sync` to send what this run leaves
            self._say(f"{why}, so the run is recorded offline")
        run = open_run("offline", self._settings(), self._arguments)
        self._folder = run.settings.sync_dir
        self._say(f"W&B: offline, in {self._folder}")
        return Sender(run, self._chosen)

    def _open_online(self) -> Sender:
        run = open_run("online", self._settings(), self._arguments)
        self._folder, self._link = run.settings.sync_dir, run.url or ""
        write_place(self._run_dir, self._arguments, run.settings.base_url, self._link)
        self._say(f"W&B: {self._link}")
        # Of the rows that the server has, wandb tells the position of the last one.
        sender = Sender(run, self._chosen, run.starting_step - 1)
        for row in self._earlier:
            sender.send(row)
        return sender

    def _settings(self) -> Any:
        return quiet_settings(set_up(), INIT_SECONDS, FINISH_SECONDS)

    def _end(self, sender: Sender, summary: dict[str, Any], state: str) -> None:
        self._over = True
        run = sender.run
        run.summary.update(summary)
        with staged_in(Path(self._arguments["dir"], "wandb")):
            whole = state == "done" and self._send_extras(sender, summary)
        if state == "preempted":
            run.mark_preempting()
        with contextlib.suppress(TimeoutError):
            run.finish(exit_code=EXIT_CODES.get(state, 1))
            self._complete = not self._link or self._has_arrived(sender)
        if state == "done":
            self._complete &= whole
            if self._complete and self._link:
                note_whole(self._run_dir, summary)

    def _send_extras(self, sender: Sender, summary: dict[str, Any]) -> bool:
        """Send tables and models; false, and a line, if W&B lacks some of them."""
        try:
            send_tables(sender, self._run_dir, summary.get("steps", 0))
            if self._link and self._config.model != "none":
                send_models(sender.run, self._run_dir, self._config.model, MODEL_SECONDS)
        except Exception as error:  # the rows and the summary are there, and are to arrive
            self._say(f"W&B: no tables or no model: {one_line(error)}")
            return False
        return True

    def _has_arrived(self, sender: Sender) -> bool:
        """Whether the server has the last row. wandb does not say when it has given up."""
        server, key = server_and_key(self._environ)
        if key is None:
            return True
        place = {"entity": sender.run.entity, "project": sender.run.project, "id": sender.run.id}
        try:
            return ask(server, key, place, ANSWER_SECONDS).position >= sender.position
        except ServerError:
            return False
