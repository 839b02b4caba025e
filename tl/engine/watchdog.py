"""Notices a process that is gone or hangs, and ends the run with that process named.

A process that dies in the middle of a collective operation leaves the others waiting, for ever or
until an error that names the wrong one. So each process beats once a second into a store that all
of them reach, from a thread of its own, and marks there how far its main thread has got. The main
process watches all others; they watch it. Who sees that something is wrong makes all write their
stacks down, says what it was, and ends the run; a launcher then ends what is left.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

from tl.command import FAILURE
from tl.engine.runtime import Runtime
from tl.engine.stop_requests import end_at_once
from tl.errors import LostPeer, OnOneProcessError, PeerFailed, Preempted, UserError

BEAT_SECONDS = 1.0
LOST_SECONDS = 60.0
"""A process without a beat for so long is gone, or stopped; or less, by `hang_timeout`."""
BEATS_TO_MISS = 3
"""How many make a process gone for one that has already lost the connection to it."""
STACKS = "stacks"
"""in the run's folder: a file for each process"""


@dataclass
class Peer:
    """What is known of another process, and when (`time.monotonic`) that last changed."""

    seen: dict[str, Any]
    last_beat: float
    last_mark: float


class Watchdog:
    """Watches the processes of a run while it trains."""

    def __init__(self, runtime: Runtime, folder: Path, seconds: float) -> None:
        """``seconds`` without progress of any process end the run."""
        self._runtime, self._folder, self._seconds = runtime, folder, seconds
        self._lost_seconds = min(seconds, LOST_SECONDS)
        self._me: dict[str, Any] = {
            "beat": 0, "leaves": False, "mark": 0, "doing": "starting",
            "pid": os.getpid(), "host": socket.gethostname(),
        }  # fmt: skip
        self._store: dist.Store | None = None
        self._peers: dict[int, Peer] = {}
        self._over = threading.Event()
        self._last_words: Callable[[str], None] = lambda message: None

    def mark(self, doing: str) -> None:
        """Say from the main thread that it got on, and what it does next. All do so alike."""
        self._me["doing"] = doing
        self._me["mark"] += 1

    @contextlib.contextmanager
    def watching(self, last_words: Callable[[str], None]) -> Iterator[None]:
        """Watch while the block runs. To be entered by all processes.

        An error that leaves the block is turned into the one that this process has to end with.

        Args:
            last_words: given the message when the run is ended; may take two seconds.
        """
        self._last_words = last_words
        if self._runtime.world_size > 1:
            self._store = self._open_store()
            self._beat()
            self._runtime.wait()  # everybody's first beat is there
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            raise self._explained(error) from None
        finally:
            self._over.set()
            thread.join()
            with contextlib.suppress(dist.DistError):
                self._beat(leaves=True)

    # ------------------------------------------------------------------------- in the main thread

    def _explained(self, error: Exception) -> Exception:
        """What this process has to end with because of ``error``: one of all speaks."""
        store = self._store
        shared = isinstance(error, UserError) and not isinstance(error, OnOneProcessError)
        if store is None or shared or isinstance(error, Preempted | PeerFailed):
            return error
        try:
            if not _speaks(store):
                return PeerFailed()
            self._over.set()  # it has a second opinion on what this process says now
            lost_connection = isinstance(error, dist.DistError) or "gloo" in str(error)
            if lost_connection and (gone := self._gone(store)):
                self._write_stacks()
                return LostPeer(f"{gone}, {self._me['doing']}. {_HOW_TO_GO_ON}")
        except dist.DistError:  # the store went with the launcher
            pass
        return error

    def _gone(self, store: dist.Store) -> str:
        """The processes that do not beat any more, in words; takes some seconds."""
        everyone = [r for r in range(self._runtime.world_size) if r != self._runtime.rank]
        before = _look(store, everyone)
        time.sleep(BEAT_SECONDS * BEATS_TO_MISS)
        after = _look(store, everyone)
        gone = [r for r in everyone if before[r] == after[r] and not after[r]["leaves"]]
        return " and ".join(f"{_name(r, after[r])} is gone" for r in gone)

    # ------------------------------------------------------------------------------ in the thread

    def _watch(self) -> None:
        watched = list(range(1, self._runtime.world_size)) if self._runtime.is_main else [0]
        now = time.monotonic()
        while not self._over.wait(BEAT_SECONDS):
            before, now = now, time.monotonic()
            if now - before > 5 * BEAT_SECONDS:
                self._peers = {}  # this process itself was stopped for a while: begin anew
            try:
                seen = {self._runtime.rank: dict(self._me)}
                self._beat()
                if self._store is not None:
                    if self._store.check(["abort"]):
                        self._end(self._store.get("abort").decode(), speaks=False)
                    seen |= _look(self._store, watched)
            except dist.DistError:
                self._store = None  # it went with the launcher, and the run will notice that
                self._peers = {}
                seen = {self._runtime.rank: dict(self._me)}
            for rank, peer in seen.items():
                self._note(rank, peer, now)
            if problem := self._problem(now):
                self._end(problem, speaks=True)

    def _note(self, rank: int, seen: dict[str, Any], now: float) -> None:
        peer = self._peers.setdefault(rank, Peer(seen, now, now))
        peer.last_beat = now if seen["beat"] != peer.seen["beat"] else peer.last_beat
        peer.last_mark = now if seen["mark"] != peer.seen["mark"] else peer.last_mark
        peer.seen = seen

    def _problem(self, now: float) -> str:
        for rank, peer in self._peers.items():
            silent = now - peer.last_beat
            if silent > self._lost_seconds and not peer.seen["leaves"]:
                what = (
                    "is gone"
                    if _kill_sibling(peer.seen)
                    else f"has not answered for {silent:.0f} s"
                )
                return f"{_name(rank, peer.seen)} {what}, {peer.seen['doing']}. {_HOW_TO_GO_ON}"
        idle = min(now - peer.last_mark for peer in self._peers.values())
        if idle > self._seconds and (self._runtime.is_main or self._store is None):
            behind = min(peer.seen["mark"] for peer in self._peers.values())
            names = [
                f"{_name(rank, peer.seen)}, {peer.seen['doing']}"
                for rank, peer in self._peers.items()
                if peer.seen["mark"] == behind
            ]
            return (
                f"no process has got on for {self._seconds:.0f} s (hang_timeout). "
                f"Behind the others, or with them: {'; '.join(names)}. {_HOW_TO_GO_ON}"
            )
        return ""

    def _end(self, message: str, speaks: bool) -> None:
        """Write this process's stacks down and end it; if it speaks, all others as well."""
        if self._store is not None and speaks:
            with contextlib.suppress(dist.DistError):
                if speaks := _speaks(self._store):
                    self._store.set("abort", message)
        if not speaks and self._over.is_set():
            return  # the main thread has met the same, and will say it
        self._write_stacks()
        if not speaks:
            end_at_once("", FAILURE, lambda message: None)
        time.sleep(2 * BEAT_SECONDS)  # the others' stacks: a launcher ends them when this one ends
        message = f"error: {message} Stacks: {self._folder / STACKS}"
        end_at_once(message, FAILURE, self._last_words)

    def _write_stacks(self) -> None:
        with contextlib.suppress(OSError):
            stacks = self._folder / STACKS
            stacks.mkdir(exist_ok=True)
            with (stacks / f"rank-{self._runtime.rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file)

    # ------------------------------------------------------------------------------ of the store

    def _open_store(self) -> dist.Store:
        # A connection of its own: one that waits holds up all others who use it.
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
        )
        return dist.PrefixStore(self._runtime.from_main(f"tl/{secrets.token_hex(4)}"), store)

    def _beat(self, leaves: bool = False) -> None:
        self._me["beat"] += 1
        self._me["leaves"] = leaves
        if self._store is not None:
            self._store.set(f"rank {self._runtime.rank}", json.dumps(self._me))


def _speaks(store: dist.Store) -> bool:
    """Whether the caller is the first of all processes to say why the run ends."""
    first: bool = store.add("speakers", 1) == 1
    return first


def _look(store: dist.Store, ranks: list[int]) -> dict[int, dict[str, Any]]:
    """The latest beats of these processes."""
    found = store.multi_get([f"rank {rank}" for rank in ranks])
    return {rank: json.loads(text) for rank, text in zip(ranks, found, strict=True)}


_HOW_TO_GO_ON = "To go on from the last checkpoint: --resume auto."


def _kill_sibling(seen: dict[str, Any]) -> bool:
    """End a silent process of the same launcher, which would give it half a minute more.

    It may be stopped rather than gone, and hold its GPU. Its parent tells it from another process
    that has got its number. Returns True if it was gone already, as far as this node can tell.
    """
    if seen["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(seen["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        if process.ppid() == os.getppid():
            process.kill()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        pass
    return False


def _name(rank: int, seen: dict[str, Any]) -> str:
    return f"rank {rank} (process {seen['pid']} on {seen['host']})"
