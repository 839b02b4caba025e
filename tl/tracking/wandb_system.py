"""System metrics of every process in W&B, where `tracking.wandb.system_metrics` asks for them.

By itself W&B shows the load of the main process's machine and GPUs. In its shared mode several
processes write to one run, each under a label of its own. That is not the run that is trained: in
shared mode W&B numbers rows itself, so no line of the record could be told from another after a
restart, and a shared run beside a plain one of the same id overwrites its first rows
(github.com/wandb/wandb/issues/12269). So there is a second run, of the same group, with the id of
the first and ``-system``; the training's run goes on as if this one were not there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tl.config.wandb import MOST_LETTERS, WandbConfig
from tl.tracking.tracker import Metrics, RunInfo
from tl.tracking.wandb_service import (
    abandon_service,
    has_credentials,
    kill_service,
    open_shared_run,
    set_up,
)
from tl.tracking.wandb_settings import init_arguments, quiet_settings, resolve_mode

INIT_SECONDS, FINISH_SECONDS = 30.0, 10.0
"""how long the server may take to open the run, and to take the last of it"""


class SystemMetrics:
    """A tracker of each process, that logs nothing: wandb's service measures by itself.

    All that may wait for a network is done by a thread. What fails here the main process says for
    its own part: ``say`` of the others goes nowhere.
    """

    def __init__(
        self,
        config: WandbConfig,
        say: Callable[[str], None],
        rank: int,
        gpu: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``gpu`` is the number of this process's, as torch counts them; None: it has none."""
        self._config, self._say, self._rank = config, say, rank
        self._environ = os.environ if environ is None else environ
        self._gpus = [] if gpu is None else gpu_of_machine(gpu, self._environ)
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._failed = False

    def start(self, run: RunInfo) -> None:
        """Begin to measure, in the background."""
        mode, _ = resolve_mode(
            self._config.mode, self._environ, lambda: has_credentials(self._environ)
        )
        if mode == "offline":
            self._say(
                "W&B: tracking.wandb.system_metrics=all needs a server while the run goes on; "
                "offline there are those of the main process"
            )
        if mode != "online":
            return
        arguments = shared_arguments(init_arguments(self._config, run, self._environ))
        set_up()
        self._thread = threading.Thread(
            target=self._run, args=(arguments,), name="wandb-system", daemon=True
        )
        self._thread.start()

    def log(self, metrics: Metrics, step: int) -> None:
        """Nothing: the lines are in the run's own W&B run."""

    def finish(self, summary: dict[str, Any], state: str) -> None:
        """Stop measuring. Waits for a bounded time."""
        del summary, state
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        self._over.set()
        thread.join(FINISH_SECONDS)
        if thread.is_alive():
            kill_service()  # the thread fails then, and tidies up after itself
            thread.join(1.0)
        elif self._failed:
            abandon_service()

    def _run(self, arguments: dict[str, Any]) -> None:
        is_main = self._rank == 0
        try:
            settings = quiet_settings(
                set_up(),
                INIT_SECONDS,
                FINISH_SECONDS,
                x_label=f"rank{self._rank}",
                x_primary=is_main,
                x_update_finish_state=is_main,
                x_save_requirements=False,
                **({"x_stats_gpu_device_ids": self._gpus} if self._gpus else {}),
            )
            run = open_shared_run(settings, arguments)
            self._say(f"W&B, system metrics of all processes: {run.url}")
            self._over.wait()
            run.finish()
        except Exception:  # no metric of the run is lost with it
            if self._over.is_set():
                abandon_service()
                return
            # The service is that of the run's own W&B run too, which goes on.
            self._failed = True
            self._say("W&B: no system metrics of this process's machine; the run goes on")


def shared_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``wandb.init`` for the second run, from those of the run that is trained."""
    end = " · system"
    return {
        **arguments,
        "id": f"{arguments['id']}-system",
        "name": arguments["name"][: MOST_LETTERS - len(end)] + end,
        "job_type": "system",
        "resume": None,  # several processes open it, one after another
    }


def gpu_of_machine(gpu: int, environ: Mapping[str, str]) -> list[int]:
    """The machine's own number of a GPU, in a list that is empty, for all, if it is not known."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if visible == [""]:
        return [gpu]
    if gpu < len(visible) and visible[gpu].strip().isdecimal():
        return [int(visible[gpu])]
    return []
