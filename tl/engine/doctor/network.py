"""Ports, servers and W&B, each looked at for a few seconds at most."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from tl.config import Config
from tl.engine.doctor.findings import Finding, note, ok, problem
from tl.engine.runtime import Runtime
from tl.errors import UserError
from tl.tracking import wandb_server
from tl.tracking.wandb_service import abandon_service, server_and_key
from tl.tracking.wandb_settings import LOG_IN, Mode, resolve_mode

T = TypeVar("T")

SECONDS = 5.0
LAUNCHERS_PORT = 29500
"""what `accelerate launch` and `torchrun` take if they are not told"""


def within(seconds: float, work: Callable[[], T]) -> T | None:
    """What ``work`` returns, or None if it takes longer: looking up a name has no limit of its own.

    What it raises, this raises. A thread that hangs does not keep the process from ending.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return results[0] if results else None


def port(here: Runtime) -> Finding:
    """Whether a TCP port can be opened on this node and reached by its host's name."""
    name = socket.gethostname()
    try:
        with socket.create_server(("", 0)) as listener:
            number = listener.getsockname()[1]
            socket.create_connection(("127.0.0.1", number), SECONDS).close()
            if (by_name := within(SECONDS, lambda: _connects(name, number))) is not True:
                why = by_name or f"looking it up takes more than {SECONDS:.0f} s"
                return note(
                    "port",
                    f"a TCP port can be opened, but not be reached by the name {name} ({why})",
                    "runs over several nodes need a name for node 0 that resolves, or its address, "
                    "in --main_process_ip",
                )
    except OSError as error:
        mend = "processes talk over TCP: let a firewall or container have ports above 1024"
        return problem("port", f"a TCP port cannot be opened and reached: {error}", mend)
    if here.world_size == 1 and _is_taken(LAUNCHERS_PORT):
        return note(
            "port",
            f"TCP ports can be opened; {LAUNCHERS_PORT}, which launchers take, is in use",
            "accelerate launch --main_process_port 0 takes a free one",
        )
    return ok("port", f"TCP ports can be opened, and reached by the name {name}")


def _connects(host: str, number: int) -> bool | str:
    try:
        socket.create_connection((host, number), SECONDS).close()
    except OSError as error:
        return str(error)
    return True


def _is_taken(number: int) -> bool:
    try:
        socket.create_server(("", number)).close()
    except OSError:
        return True
    return False


def reached(url: str, seconds: float = SECONDS) -> bool:
    """Whether the server of ``url`` answers, whatever it says."""
    with contextlib.suppress(Exception):
        return bool(within(seconds + 1, lambda: wandb_server.answers(url, seconds)))
    return False


def wandb(config: Config, environ: Mapping[str, str], seconds: float = SECONDS) -> Finding:
    """The W&B mode of a run, and whether its server can be reached. Shows no key.

    A run trains without W&B, so all but a wrong setting are notes.
    """
    if "wandb" not in config.tracking.trackers:
        return ok("W&B", "not among tracking.trackers")
    found: list[tuple[str, str | None]] = []

    def has_key() -> bool:
        # wandb's own service tells server and key; it takes a second or two to start.
        got = within(30, lambda: server_and_key(environ))
        found.append(got or ("https://api.wandb.ai", None))
        return bool(found[0][1] or environ.get("WANDB_IDENTITY_TOKEN_FILE"))

    try:
        mode, why = resolve_mode(config.tracking.wandb.mode, environ, has_key)
        if mode == "disabled":
            return ok("W&B", why.removeprefix("W&B is ") or "off: tracking.wandb.mode=disabled")
        if not found:
            has_key()
        return _server(config, mode, why, *found[0], seconds)
    except UserError as error:
        return problem("W&B", str(error), "give a mode that wandb has, or none")
    finally:
        if found:
            abandon_service()


def _server(
    config: Config, mode: Mode, why: str, server: str, key: str | None, seconds: float
) -> Finding:
    """Whether the server answers, and takes the key if there is one."""
    parts = urlsplit(server)
    name = parts.hostname or "?"  # no more of it: there may be a password
    why = why.removeprefix("W&B: ").partition(";")[0]  # how to log in is said below
    said = f"{mode} ({why})" if why else mode
    later = "training goes on without it; afterwards `tl sync RUN_DIR` where there is a network"
    if key is None:
        if reached(server, seconds):
            return note("W&B", f"{said}; {name} answers", LOG_IN) if why else ok("W&B", said)
        return ok("W&B", f"{said}; {name} does not answer within {seconds:.0f} s: {later}")
    settings = config.tracking.wandb
    place = {"project": settings.project, "entity": settings.entity, "id": "tl-doctor"}
    try:
        answer = within(seconds + 1, lambda: wandb_server.ask(server, key, place, seconds))
    except wandb_server.KeyRefused:
        if mode == "offline":
            return note("W&B", f"{said}; {name} refuses the key", LOG_IN)
        return problem("W&B", f"{said}; {name} refuses the key", LOG_IN)
    except wandb_server.ServerError as error:
        text = str(error).replace(key, "…").replace(server, name)
    else:
        if answer is not None:
            return ok("W&B", f"{said}; {name} answers and takes the key")
        text = f"{name} does not answer within {seconds:.0f} s"
    if mode == "offline":
        return ok("W&B", f"{said}; {text}: {later}")
    return note("W&B", f"{said}; {text}", f"{later}, or set tracking.wandb.mode=offline")
