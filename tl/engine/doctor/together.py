"""All processes as one: whether they join, sum right and fast, and have the same software."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import torch

from tl.command import FAILURE
from tl.config import Config
from tl.engine import runtime
from tl.engine.doctor.findings import Finding, note, ok, problem
from tl.engine.runtime import Runtime
from tl.errors import LostPeer

BYTES = 16_000_000
"""of the sum that is timed: a fifth of a ResNet-50's gradients, a half of a ResNet-18's"""
_SLOW = 0.125
"""GB/s, a network of 1 Gbit/s"""

_MEND = (
    "Let nodes reach each other on all TCP ports above 1024; NCCL_SOCKET_IFNAME and "
    "GLOO_SOCKET_IFNAME name the network interface to use, NCCL_DEBUG=INFO says what NCCL tries"
)


def join(config: Config, seconds: float) -> Runtime:
    """`runtime.start`, and a first sum, with a limit to the time that they may take.

    Raises:
        UserError: as `runtime.start`.
        LostPeer: the processes cannot join.
    """
    with _deadline(seconds, "could not join the others"):
        try:
            here = runtime.start(config)
            if here.world_size > 1:
                torch.distributed.all_reduce(torch.ones(1, device=here.device))
                _finish(here)
            return here
        except (RuntimeError, OSError) as error:  # torch's own for networks and NCCL are such
            first = (str(error).splitlines() or [""])[0]
            raise LostPeer(f"{_who()} could not join the others: {first}. {_MEND}.") from error


def collective(here: Runtime, seconds: float) -> Finding:
    """Sum `BYTES` over all processes, check every number of it, and time it."""
    if here.world_size == 1:
        return ok("all-reduce", "one process, so there is nothing to sum; a launcher starts more")
    pattern = torch.arange(BYTES // 4, device=here.device).remainder_(7).float()
    world = here.world_size
    expected = pattern * world + world * (world - 1) / 2  # whole numbers: exact in float32
    times, right = [], True
    with _deadline(seconds, f"waited for a sum of {BYTES / 1e6:.0f} MB"):
        for _ in range(4):
            values = pattern + here.rank
            _finish(here)
            here.wait()
            began = time.perf_counter()
            torch.distributed.all_reduce(values)
            _finish(here)
            times.append(time.perf_counter() - began)
            right = right and torch.equal(values, expected)
    # The first one opens connections. A sum takes as long as it does for the last process.
    took = max(here.from_all([median(times[1:])]))
    wrong = [rank for rank, fine in enumerate(here.from_all([right])) if not fine]
    backend = torch.distributed.get_backend()
    if wrong:
        return problem(
            "all-reduce",
            f"{backend}: the sum over {world} processes is wrong on {_ranks(wrong)}",
            "hardware or driver: try each node alone, and NCCL_P2P_DISABLE=1",
        )
    speed = BYTES / took / 1e9
    text = (
        f"{backend} sums right over {world} processes; {BYTES / 1e6:.0f} MB take "
        f"{took * 1e3:.1f} ms: {speed:.2f} GB/s"
    )
    if speed < _SLOW:
        mend = (
            "a step exchanges all gradients that train, 45 MB for a whole ResNet-18. "
            "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name a faster network interface"
        )
        return note("all-reduce", f"{text}, slow", mend)
    return ok("all-reduce", text)


def compare(nodes: Sequence[tuple[str, Mapping[str, str], Sequence[str]]]) -> list[Finding]:
    """Where processes have other software or GPUs than others.

    Args:
        nodes: of each process its host, its versions by name, and its GPUs.
    """
    found = []
    names = dict.fromkeys(name for _, versions, _ in nodes for name in versions)
    for name in names:
        if said := _differences(
            [(host, versions.get(name, "none")) for host, versions, _ in nodes]
        ):
            mend = "start the same environment on all nodes: one folder that all of them see"
            found.append(problem("nodes", f"{name} differs: {said}", mend))
    kinds = [(host, " and ".join(sorted(set(gpus))) or "none") for host, _, gpus in nodes]
    if said := _differences(kinds):
        mend = "the slowest sets the pace; Slurm: --constraint asks for nodes of one kind"
        found.append(note("nodes", f"GPUs differ: {said}", mend))
    if not found and len({host for host, _, _ in nodes}) > 1:
        found.append(ok("nodes", "all have the same versions and GPUs"))
    return found


def _differences(values: Sequence[tuple[str, str]]) -> str:
    """Each value with the hosts that have it; empty if there is one value."""
    hosts: dict[str, list[str]] = {}
    for host, value in values:
        hosts.setdefault(value, []).append(host)
    if len(hosts) < 2:
        return ""
    return ", ".join(
        f"{value} on {', '.join(dict.fromkeys(where))}" for value, where in hosts.items()
    )


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _finish(here: Runtime) -> None:
    if here.device.type == "cuda":
        torch.cuda.synchronize(here.device)


def _who() -> str:
    return f"rank {os.environ.get('RANK', '0')} on {platform.node()}"


@contextlib.contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    """End the process if the block takes longer: what hangs in a collective cannot be told to stop.

    A launcher then ends the others.
    """

    def give_up() -> None:
        print(f"error: {_who()} {what} for {seconds:.0f} s. {_MEND}.", file=sys.stderr, flush=True)
        os._exit(FAILURE)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
