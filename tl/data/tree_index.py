"""What was found in the folders of a data set, kept in a file for the next process or run.

An index holds as long as every folder that was looked into has the device, inode and times that it
had: a file that comes or goes changes the folder's. Not seen is a file that turns into a folder
behind a link to it; a link to nowhere that turns into one is.

A file is never changed once it is there, as processes have its pages in their memory: its name is
made of its content, and another content is another file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tl.atomic import from_json, to_json, write_bytes_atomically
from tl.data.names import Names

SETTLED = 2.0
"""Seconds that a folder must have been left alone before it is listed: the coarsest clock of a file
system (FAT). One that changes later in the same tick has the time that was noted."""
MOST_FILES = 32
"""indexes that stay, the last used; 35 MB each for a million images"""
MOST_MISSING = 1000
"""links to nowhere, each of which would be looked at again"""

MAGIC = b"tl tree index 1\n"
DIGEST = len(MAGIC)
LENGTH = DIGEST + hashlib.sha256().digest_size
HEADER = LENGTH + 8

Signature = tuple[int, int, int, int]
"""device, inode, and when it was changed (mtime and ctime, in ns)"""


@dataclass
class TreeIndex:
    """Lists of names by what they are and the folder they were found below."""

    looked_into: dict[str, Signature | None] = field(default_factory=dict)
    """by the path below root; None: was no folder"""
    lists: dict[tuple[str, str], Names] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def is_settled(self) -> bool:
        """Whether a change that comes after the listing will be seen."""
        before = (self.started - SETTLED) * 1e9
        seen = [signature for signature in self.looked_into.values() if signature is not None]
        return all(max(mtime, ctime) < before for _, _, mtime, ctime in seen) and (
            len(self.looked_into) - len(seen) <= MOST_MISSING
        )

    def holds(self, root: Path) -> bool:
        """Whether all folders are as they were; looks at each, and lists none."""
        return all(
            signature_of(root, path) == signature for path, signature in self.looked_into.items()
        )


def signature_of(root: Path, path: str) -> Signature | None:
    """What tells a folder from the one it was before a change; None if it is no folder."""
    try:
        stat = os.stat(os.path.join(root, path, ""))  # noqa: PTH116, PTH118 - "/": a folder or none
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def find(place: Path, root: Path, endings: frozenset[str]) -> TreeIndex | None:
    """The index in the folder ``place`` of this tree, if there is one that holds."""
    with suppress(OSError):
        for path in _by_use(place, f"{_key(root, endings)}-*.index"):
            try:
                found = _read(path, _about(root, endings))
            except (OSError, ValueError, TypeError, KeyError):
                continue  # damaged, or another's: one that can be read is made
            if found.holds(root):
                with suppress(OSError):
                    os.utime(path)
                return found
    return None


def keep(place: Path, root: Path, endings: frozenset[str], index: TreeIndex) -> None:
    """Write the index for others to find, if it can be relied upon and the folder written to."""
    if not index.is_settled():
        return
    content = _content(index, _about(root, endings))
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    name = f"{_key(root, endings)}-{digest.hexdigest()[:16]}.index"
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(place / name, [MAGIC, digest.digest(), *content])
        for old in list(_by_use(place, "*.index"))[MOST_FILES:]:
            old.unlink(missing_ok=True)
        for staged in place.glob(".*.tmp"):  # of a process that was killed
            if staged.stat().st_mtime < time.time() - 86400:
                staged.unlink(missing_ok=True)


def _about(root: Path, endings: frozenset[str]) -> dict[str, Any]:
    return {"root": os.path.realpath(root), "endings": sorted(endings)}


def _key(root: Path, endings: frozenset[str]) -> str:
    return hashlib.sha256(to_json(_about(root, endings)).encode()).hexdigest()[:16]


def _by_use(place: Path, pattern: str) -> Iterator[Path]:
    """The files, the last used first."""
    found = []
    for path in place.glob(pattern):
        with suppress(OSError):  # another process has deleted it
            found.append((path.stat().st_mtime_ns, path))
    return (path for _, path in sorted(found, reverse=True))


def _content(index: TreeIndex, about: dict[str, Any]) -> list[bytes | memoryview]:
    """What a file holds behind the digest. The names of images are next to each other."""
    keys = sorted(index.lists, key=lambda key: key[0] != "images")  # stable: in their order
    blob, ends = Names.joined([index.lists[key] for key in keys]).arrays()
    header = {
        **about,
        "folders": list(index.looked_into.items()),
        "lists": [[*key, len(index.lists[key])] for key in keys],
        "letters": len(blob),
    }
    text = to_json(header).encode()
    text += b" " * (-(HEADER + len(text)) % 8)  # for numbers to start where they may
    arrays = [array.data for array in (ends, blob)]
    return [len(text).to_bytes(8, "little"), text, *arrays]


def _read(path: Path, about: dict[str, Any]) -> TreeIndex:
    """The index in a file, whose pages all processes share.

    Raises:
        OSError, ValueError, TypeError, KeyError: it is not one of this tree, or damaged.
    """
    with path.open("rb") as file:
        start = file.read(HEADER)
        if len(start) < HEADER or not start.startswith(MAGIC):
            raise ValueError("not an index")
        file.seek(LENGTH)
        # Read, not mapped: the pages would count as memory of this process.
        if hashlib.file_digest(file, "sha256").digest() != start[DIGEST:LENGTH]:
            raise ValueError("damaged")
        file.seek(HEADER)
        length = int.from_bytes(start[LENGTH:], "little")
        header = from_json(file.read(length))
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if any(header[key] != value for key, value in about.items()):
        raise ValueError("of another tree")
    total = sum(count for _, _, count in header["lists"])
    ends = np.frombuffer(mapped, np.int64, total + 1, HEADER + length)
    blob = np.frombuffer(mapped, np.uint8, header["letters"], HEADER + length + ends.nbytes)
    if ends[0] != 0 or ends[-1] != len(blob) or not (ends[:-1] < ends[1:]).all():
        raise ValueError("names that are not there")
    index, at = TreeIndex(), 0
    for kind, below, count in header["lists"]:
        index.lists[kind, below] = Names(blob, ends, range(at, at + count))
        at += count
    for folder, signature in header["folders"]:
        index.looked_into[folder] = None if signature is None else tuple(signature)
    return index
