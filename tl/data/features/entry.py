"""Features of the images of a split, on the disk: one file, described by a manifest.

Features are what a network's frozen prefix makes of an image. An *entry* of the cache is a folder,
named by a hash of all that its content follows from:

    KEY/features.bin     row i: the features of image i, as bytes
    KEY/manifest.json    what the rows are, and a sha256 of each block of them

While it is made it is called ``KEY.partial``, holds a lock, and for each process a log of the
blocks that are done. So what was computed before a run was killed is not lost, and of two runs that
want the same entry one waits for the other.

A block is always the same rows, and these go through the network together: what comes out does not
depend on the number of processes that have shared the work.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

import torch
from torch import Tensor

from tl.atomic import from_json
from tl.data.features.layout import Layout

FORMAT = 1


@dataclass(frozen=True)
class Block:
    """What is known of a block that has been written."""

    sha256: str
    bad: Mapping[int, str] = field(default_factory=dict)
    """row -> why its image could not be decoded; the row is zeros"""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`. Raises ValueError, KeyError or TypeError for anything else."""
        bad = values.get("bad", {})
        return cls(str(values["sha256"]), {int(row): str(reason) for row, reason in bad.items()})

    def to_dict(self) -> dict[str, Any]:
        bad = {str(row): reason for row, reason in self.bad.items()}
        return {"sha256": self.sha256, **({"bad": bad} if bad else {})}


@dataclass(frozen=True)
class Entry:
    """An entry that is open: nobody deletes it before it is closed, or this process ends."""

    folder: Path
    layout: Layout
    blocks: tuple[Block, ...]
    in_use: TextIO

    @property
    def bad(self) -> dict[int, str]:
        return {row: reason for block in self.blocks for row, reason in block.bad.items()}

    def rows(self) -> Tensor:
        """All rows, uint8 (rows, stride): a memory map, of which a node holds one copy."""
        layout = self.layout
        if not layout.rows:
            return torch.zeros(0, layout.stride, dtype=torch.uint8)
        path = str(self.folder / "features.bin")
        mapped = torch.from_file(path, shared=False, size=layout.size, dtype=torch.uint8)
        return mapped.view(layout.rows, layout.stride)

    def is_whole(self, part: int, parts: int, threads: int) -> bool:
        """Whether one of ``parts`` parts of the blocks is what was written."""
        return all(
            check_blocks(
                self.folder, self.layout, dict(enumerate(self.blocks)), part, parts, threads
            )
        )

    def close(self) -> None:
        self.in_use.close()


def open_entry(folder: Path) -> Entry | None:
    """The entry in a folder, or None if there is none that could be read."""
    try:
        in_use = (folder / "manifest.json").open(encoding="utf-8")
    except OSError:
        return None
    try:
        _share(in_use)
        manifest = from_json(in_use.read())
        layout = Layout.from_dict(manifest["layout"])
        blocks = tuple(Block.from_dict(block) for block in manifest["blocks"])
        size = (folder / "features.bin").stat().st_size
        if manifest["format"] == FORMAT and size == layout.size and len(blocks) == layout.blocks:
            os.utime(folder)  # it was used: the least recently used make room for others
            return Entry(folder, layout, blocks, in_use)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # damaged, or deleted just now
    in_use.close()
    return None


def check_blocks(
    folder: Path, layout: Layout, blocks: Mapping[int, Block], part: int, parts: int, threads: int
) -> list[bool]:
    """Whether each block of a part is in the file as it was written."""

    def is_whole(i: int) -> bool:
        rows = layout.rows_of(i)
        with (folder / "features.bin").open("rb", buffering=0) as file:
            file.seek(rows.start * layout.stride)
            # Larger pieces than a hash reads at once, smaller than the caches.
            left, digest = len(rows) * layout.stride, hashlib.sha256()
            while left and (data := file.read(min(left, 2**20))):
                digest.update(data)
                left -= len(data)
        return digest.hexdigest() == blocks[i].sha256

    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(is_whole, list(blocks)[part::parts]))
    except OSError:
        return [False] * len(list(blocks)[part::parts])


def _share(file: TextIO) -> None:
    """Mark an open file as in use; raises OSError if it was deleted before that."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise  # somebody is deleting it
    except OSError:
        pass  # no locks here; on Linux what is deleted stays readable for those who have it open
    if not is_at(file, Path(file.name)):
        raise FileNotFoundError(file.name)


def is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        there, here = path.stat(), os.fstat(file.fileno())
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
