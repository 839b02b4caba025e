"""Real processes that run functions of tests together, over gloo.

A process that imports torch and its company takes seconds to start. So one server imports them
once, every process is a fork of it, and the same ones serve the whole session. A function is found
by its file and name, gets its arguments, and joins the others as `accelerate launch` would have
it: by the environment.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

SECONDS = 280
SECONDS_AFTER_A_FAILURE = 20
"""how long the others may take to notice; they are ended after that"""


def fork_server() -> Any:
    """A multiprocessing context whose processes start in no time: torch is there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision", "accelerate", "tl.engine.run"])
    return context


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _load(file: str) -> Any:
    """The module of a test file, loaded once in each worker."""
    name = "worker_" + file.replace("/", "_").replace(".", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _serve(connection: Connection, rank: int) -> None:
    sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120
    faulthandler.enable()
    gc.freeze()  # to look through all of torch at the end of each phase takes half of a short run
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as by default
    import torch

    from tl.engine import runtime

    while (job := connection.recv()) is not None:
        file, name, arguments, world_size, port = job
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        if world_size == 1:  # alone, as under `python`
            for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
                del os.environ[variable]
        try:
            result, error = getattr(_load(file), name)(*arguments), None
        except BaseException as caught:
            result, error = None, (type(caught).__name__, str(caught), traceback.format_exc())
        with contextlib.suppress(Exception):
            runtime.stop()
        torch.set_num_threads(1)
        connection.send((result, error))


class WorkerError(AssertionError):
    """What a function raised in a worker."""

    def __init__(self, rank: int, kind: str, message: str, trace: str) -> None:
        super().__init__(f"rank {rank}: {kind}: {message}\n{trace}")
        self.rank, self.kind, self.message = rank, kind, message


class GlooWorkers:
    """See the module."""

    def __init__(self) -> None:
        self._context = fork_server()
        self._workers: list[tuple[Any, Connection]] = []

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(*arguments)`` in ``world_size`` processes; returns what each returned.

        Raises:
            WorkerError: what the first process to fail raised; not one that left it to a peer.
        """
        while len(self._workers) < world_size:
            here, there = self._context.Pipe()
            rank = len(self._workers)
            process = self._context.Process(target=_serve, args=(there, rank))
            process.start()
            there.close()
            self._workers.append((process, here))
        file, port = function.__code__.co_filename, free_port()
        connections = [connection for _, connection in self._workers[:world_size]]
        for connection in connections:
            connection.send((file, function.__name__, arguments, world_size, port))
        results: list[Any] = [None] * world_size
        failure: WorkerError | None = None
        pending = set(connections)
        while pending:
            ready = wait(list(pending), timeout=SECONDS_AFTER_A_FAILURE if failure else SECONDS)
            if not ready:
                if failure is None:
                    self._show_stacks()
                self.stop()
                raise failure or TimeoutError(f"{function.__name__} took more than {SECONDS} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                pending.discard(connection)
                rank = connections.index(connection)
                try:
                    result, error = connection.recv()
                except EOFError:
                    self.stop()
                    raise failure or WorkerError(
                        rank, "EOFError", "the process has ended", ""
                    ) from None
                if error is not None and (failure is None or failure.kind == "PeerFailed"):
                    failure = WorkerError(rank, *error)
                results[rank] = result
        if failure is not None:
            raise failure
        return results

    def _show_stacks(self) -> None:
        """Make the processes, and their loader workers, print where they are; this ends them."""
        for process, _ in self._workers:
            parent = psutil.Process(process.pid)
            for each in (parent, *parent.children()):
                print(f"stacks of process {each.pid}, of {process.pid}:", file=sys.stderr)
                each.send_signal(signal.SIGABRT)
                psutil.wait_procs([each], timeout=5)

    def stop(self) -> None:
        """End the processes. The next `run` starts new ones."""
        for process, connection in self._workers:
            with contextlib.suppress(OSError):
                connection.send(None)
            process.join(timeout=1)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()
        self._workers = []
