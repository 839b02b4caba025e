"""The folder of all entries: which there are, room for one more, and deleting them."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl.atomic import from_json

PARTIAL = ".partial"
"""what the folder's name ends in while an entry is made"""


@dataclass(frozen=True)
class Listed:
    """An entry, or the draft of one, as its folder says."""

    folder: Path
    about: dict[str, Any]
    """what it was made from; empty for a draft"""
    bytes: int
    used: float
    """when it was last used, in seconds since the epoch"""

    @property
    def key(self) -> str:
        return self.folder.name.removesuffix(PARTIAL)

    @property
    def is_draft(self) -> bool:
        return self.folder.name.endswith(PARTIAL)


def entries(folder: Path) -> list[Listed]:
    """All entries and drafts, the least recently used first."""
    try:
        inside = [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted((listed for p in inside if (listed := _listed(p))), key=lambda entry: entry.used)


def _listed(path: Path) -> Listed | None:
    about: Any = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = from_json((path / "manifest.json").read_text("utf-8"))["about"]
    try:
        stat = (path / "features.bin").stat()
        used = path.stat().st_mtime
    except OSError:  # deleted meanwhile
        return None
    # A draft has holes: what it takes is what has been written.
    size = 512 * stat.st_blocks if path.name.endswith(PARTIAL) else stat.st_size
    return Listed(path, about if isinstance(about, dict) else {}, size, used)


def free_bytes(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def make_room(folder: Path, needed: int, most: int, keep: Path) -> list[Listed]:
    """Delete the least recently used entries until ``needed`` bytes more are within ``most``.

    What a process is using stays, so they may still be more in the end.

    Args:
        keep: the entry that is to be made; its draft counts as a part of what is needed.

    Returns:
        What was deleted.
    """
    others = [entry for entry in entries(folder) if entry.key != keep.name]
    excess = sum(entry.bytes for entry in others) + needed - most
    gone = []
    for entry in others:
        if excess <= 0:
            break
        if delete(entry):
            gone.append(entry)
            excess -= entry.bytes
    return gone


def discard(folder: Path) -> None:
    """Delete an entry, or the draft of one."""
    shutil.rmtree(folder, ignore_errors=True)


def delete(entry: Listed) -> bool:
    """Delete an entry, unless a process is using it."""
    with _nobody_uses(entry) as free:
        if free:
            discard(entry.folder)
        return free


@contextlib.contextmanager
def _nobody_uses(entry: Listed) -> Iterator[bool]:
    """Whether an entry is free, which it stays within the block."""
    name, system = ("lock", fcntl.lockf) if entry.is_draft else ("manifest.json", fcntl.flock)
    try:
        file = (entry.folder / name).open("r+")
    except OSError:
        # A draft gets its lock first, and a manifest is there or was: this is a torn one.
        yield time.time() - entry.used > 60
        return
    with file:
        try:
            system(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # no locks on this file system
        yield True


def in_words(size: float) -> str:
    """``84 MB``: bytes by powers of ten, as disks are sold and tools list them."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    digits = 0 if units[0] == "bytes" or size >= 9.95 else 1
    return f"{size:.{digits}f} {units[0]}"
