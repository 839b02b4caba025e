"""The wandb module and its service, as both the tracker and `tl sync` use them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from tl.tracking.wandb_rows import NOTHING, PHASE_NUMBER, Row
from tl.tracking.wandb_settings import key_for, secret_of_slurm
from tl.tracking.wandb_summary import BestSoFar, evaluation_of

# Threads that open runs at once would get in each other's way: the environment is one of it all.
_ONE_AT_A_TIME = threading.Lock()


def set_up() -> Any:
    """The wandb module, told to be silent; to be called again after a teardown."""
    # wandb reports its own errors and timings to its makers. With a server that does not answer,
    # that alone keeps a process from ending for many seconds.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    threading.excepthook = all_but_wandbs_own
    with _without_secrets():
        wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def all_but_wandbs_own(failed: threading.ExceptHookArgs) -> None:
    """In place of `threading.excepthook`: no traceback of the thread that wandb watches by.

    It fails when its service dies while a run opens. `wandb.init` fails too, which is said.
    """
    if failed.thread is None or failed.thread.name != "NetStatThr":
        threading.__excepthook__(failed)


@contextlib.contextmanager
def _without_secrets() -> Iterator[None]:
    """Take out of the environment what wandb's service, which inherits it, would write down."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if secret_of_slurm(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def server_and_key(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """The URL of the server that wandb talks to, and the key for it, if there is one."""
    settings = set_up().setup().settings
    return settings.base_url, settings.api_key or key_for(settings.base_url, environ)


def has_credentials(environ: Mapping[str, str]) -> bool:
    """Whether wandb can log in. It may do so by a token in place of a key."""
    return bool(environ.get("WANDB_IDENTITY_TOKEN_FILE") or server_and_key(environ)[1])


def open_run(mode: str, settings: Any, arguments: dict[str, Any]) -> Any:
    """``wandb.init``, with ``step`` as the axis of all metrics.

    wandb's own step, which would be it, is a row's position (`tl.tracking.wandb_rows`).
    """
    run = _init(mode, settings, arguments)
    for axis in ("step", "epoch", PHASE_NUMBER):
        run.define_metric(axis, hidden=True)  # to draw others over, and no chart of their own
    run.define_metric("*", step_metric="step")
    return run


def open_shared_run(settings: Any, arguments: dict[str, Any]) -> Any:
    """``wandb.init`` of a run that other processes write to as well, and beside another run."""
    return _init("shared", settings, {**arguments, "reinit": "create_new"})


def _init(mode: str, settings: Any, arguments: dict[str, Any]) -> Any:
    wandb = set_up()
    with _ONE_AT_A_TIME, _without_secrets():
        return wandb.init(mode=mode, settings=settings, **arguments)


class Sender:
    """Gives rows to an open run, each once, and keeps the run's summary."""

    def __init__(self, run: Any, chosen: Mapping[str, Any], position: int = NOTHING) -> None:
        """``chosen`` is the config's `best`; the server has all rows up to ``position``."""
        self.run, self.position = run, position
        self._best, self._defined = BestSoFar(chosen), set[str]()

    def send(self, row: Row) -> None:
        position, values = row
        for name in evaluation_of(values).keys() - self._defined:
            # Else wandb puts its last value where the best model's is to stand.
            self.run.define_metric(name, step_metric="step", summary="none")
            self._defined.add(name)
        update = self._best.after(values)
        if position > self.position:
            self.run.log(values, step=position, commit=True)
            self.position = position
        if update:
            self.run.summary.update(update)


def kill_service() -> None:
    """End wandb's service at once: one that hangs would keep this process from ending for ever."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("wandb-"):
                for process in (*child.children(), child):
                    process.kill()


def abandon_service() -> None:
    """End wandb's service and make wandb forget it, so that the next `set_up` starts a new one.

    Left to itself, wandb waits for what the service still has to send, and tries once more when the
    process ends, which fails in many lines.
    """
    kill_service()
    # It exits as its service did, which was killed.
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()
