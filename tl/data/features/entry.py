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
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

import torch
from torch import Tensor

from tl.atomic import from_json, sync, to_json, write_json_atomically
from tl.data.features.folder import PARTIAL, discard
from tl.file_lock import lock

FORMAT = 1
BLOCK = 64
"""rows that are computed and checked together"""
STRIDE = 128
"""Bytes between two rows are a multiple of it, so blocks begin on a page of memory: two processes,
also on two machines that share a disk, never write into the same page."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Layout:
    """How an entry's rows lie in its file."""

    rows: int
    shape: tuple[int, ...]
    """of the features of one image"""
    dtype: str
    channels_last: bool
    """(C, H, W) lies in memory as (H, W, C), as the network's convolutions have it"""

    @classmethod
    def of(cls, features: Tensor, rows: int) -> Self:
        """The layout for ``rows`` rows of what ``features`` (N, …), with N > 1, are an example."""
        is_last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
        name = str(features.dtype).removeprefix("torch.")
        last = is_last and not features.is_contiguous()
        return cls(rows, tuple(features.shape[1:]), name, last)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def stride(self) -> int:
        return math.ceil(self.row_bytes / STRIDE) * STRIDE

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.rows * self.stride

    @property
    def blocks(self) -> int:
        return math.ceil(self.rows / BLOCK)

    def rows_of(self, block: int) -> range:
        return range(self.rows)[block * BLOCK : (block + 1) * BLOCK]

    def to_bytes(self, features: Tensor) -> Tensor:
        """Features (N, …) as rows of bytes, uint8 (N, row_bytes)."""
        if self.channels_last:
            features = features.permute(0, 2, 3, 1)
        return features.flatten(1).contiguous().view(torch.uint8)

    def from_bytes(self, rows: Tensor) -> Tensor:
        """Features (N, …) from rows of the file, uint8 (N, stride)."""
        flat = rows[:, : self.row_bytes].contiguous().view(DTYPES[self.dtype])
        if not self.channels_last:
            return flat.view(len(rows), *self.shape)
        channels, height, width = self.shape
        return flat.view(len(rows), height, width, channels).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "channels_last": self.channels_last,
        }


@dataclass(frozen=True)
class Block:
    """What is known of a block that has been written."""

    sha256: str
    bad: Mapping[int, str] = field(default_factory=dict)
    """row -> why its image could not be decoded; the row is zeros"""


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
            _check(self.folder, self.layout, dict(enumerate(self.blocks)), part, parts, threads)
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
        layout = _layout(manifest["layout"])
        blocks = tuple(_block(block) for block in manifest["blocks"])
        size = (folder / "features.bin").stat().st_size
        if manifest["format"] == FORMAT and size == layout.size and len(blocks) == layout.blocks:
            os.utime(folder)  # it was used: the least recently used make room for others
            return Entry(folder, layout, blocks, in_use)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # damaged, or deleted just now
    in_use.close()
    return None


class Draft:
    """An entry that is being made, by one process or by several that see the same folder."""

    def __init__(self, entry: Path, layout: Layout) -> None:
        self.entry, self.layout = entry, layout
        self.folder = entry.with_name(entry.name + PARTIAL)
        self._lock: TextIO | None = None
        self._data = -1
        self._log: TextIO | None = None

    # ------------------------------------------------------------------ the first of the processes

    def take(self, seconds: float) -> bool:
        """Become the one who makes it; false if another process still is after ``seconds``."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("w")
            if not lock(file, seconds):
                file.close()
                return False
            if _is_at(file, self.folder / "lock"):
                self._lock = file
                return True
            file.close()  # the other one was done, or has given up, and took the lock along

    def prepare(self) -> None:
        """Make room in the file. What of another layout lies there is deleted."""
        plan = self.folder / "layout.json"
        try:
            same = _layout(from_json(plan.read_text("utf-8"))) == self.layout
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            for path in self.folder.iterdir():
                if path.name != "lock":
                    path.unlink()
            write_json_atomically(plan, self.layout.to_dict())
        with (self.folder / "features.bin").open("ab") as file:
            file.truncate(self.layout.size)

    def written_bytes(self) -> int:
        """What the draft takes on the disk already: its file has holes."""
        try:
            return 512 * (self.folder / "features.bin").stat().st_blocks
        except OSError:
            return 0

    def complete(self, blocks: Mapping[int, Block], about: Mapping[str, Any]) -> None:
        """Make it the entry. All processes have closed it, and every block is done.

        Args:
            about: what it was made from, for people.
        """
        manifest = {
            "format": FORMAT,
            "about": dict(about),
            "layout": self.layout.to_dict(),
            "blocks": [_to_dict(blocks[i]) for i in range(self.layout.blocks)],
        }
        write_json_atomically(self.folder / "manifest.json", manifest)
        for path in [*self.folder.glob("*.jsonl"), self.folder / "layout.json"]:
            path.unlink()
        try:
            (self.folder / "lock").unlink()
            self.folder.rename(self.entry)
        except OSError:
            if not (self.entry / "manifest.json").is_file():
                raise
            discard(self.folder)  # made by another run, where files cannot be locked
        sync(self.entry.parent)
        self.let_go()

    def let_go(self) -> None:
        """Stop to be the one who makes it; what is done stays for the next."""
        if self._lock is not None:
            is_mine = _is_at(self._lock, lock_file := self.folder / "lock")
            if is_mine and len(list(self.folder.iterdir())) == 1:  # nothing is done
                lock_file.unlink()
                self.folder.rmdir()
            self._lock.close()
            self._lock = None

    # ------------------------------------------------------------------------ each of the processes

    def finished(self, part: int, parts: int, threads: int) -> dict[int, Block]:
        """Those blocks of one of ``parts`` parts that were done by whoever was here before."""
        found: dict[int, Block] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text("utf-8", "replace").splitlines():
                try:
                    record = from_json(line)
                    found[int(record["block"])] = _block(record)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # it was being written when the run died
        found = {i: found[i] for i in sorted(found) if 0 <= i < self.layout.blocks}
        mine = list(found)[part::parts]
        good = _check(self.folder, self.layout, found, part, parts, threads)
        return {i: found[i] for i, is_good in zip(mine, good, strict=True) if is_good}

    def write(self, block: int, ids: Tensor, features: Tensor, bad: Mapping[int, str]) -> Block:
        """Write a block: ``features`` (N, …) of the images ``ids`` (N,), zeros for the others.

        Args:
            bad: rows that are zeros because their images cannot be decoded, and why.

        Raises:
            OSError: the disk is full, or gone.
        """
        if self._log is None:
            self._log = (self.folder / f"{os.uname().nodename}-{os.getpid()}.jsonl").open("a")
            self._data = os.open(self.folder / "features.bin", os.O_WRONLY)
        numbers = self.layout.rows_of(block)
        rows = torch.zeros(len(numbers), self.layout.stride, dtype=torch.uint8)
        places = ids - numbers.start
        rows[places, : self.layout.row_bytes] = self.layout.to_bytes(features).cpu()
        data = rows.numpy().data.cast("B")
        record = Block(hashlib.sha256(data).hexdigest(), dict(bad))
        offset = numbers.start * self.layout.stride
        while data:
            written = os.pwrite(self._data, data, offset)
            data, offset = data[written:], offset + written
        self._log.write(to_json({"block": block, **_to_dict(record)}) + "\n")
        self._log.flush()
        return record

    def close(self) -> None:
        """Put what this process has written on the disk."""
        if self._log is not None:
            os.fsync(self._data)
            os.close(self._data)
            self._log.close()
            self._log = None


def _check(
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


def _layout(values: Mapping[str, Any]) -> Layout:
    layout = Layout(
        int(values["rows"]),
        tuple(int(n) for n in values["shape"]),
        str(values["dtype"]),
        bool(values["channels_last"]),
    )
    if layout.dtype not in DTYPES or layout.rows < 0 or min(layout.shape, default=0) < 0:
        raise ValueError(f"no layout: {values}")
    if layout.channels_last and len(layout.shape) != 3:
        raise ValueError(f"no layout: {values}")
    return layout


def _block(values: Mapping[str, Any]) -> Block:
    bad = values.get("bad", {})
    return Block(str(values["sha256"]), {int(row): str(reason) for row, reason in bad.items()})


def _to_dict(block: Block) -> dict[str, Any]:
    bad = {str(row): reason for row, reason in block.bad.items()}
    return {"sha256": block.sha256, **({"bad": bad} if bad else {})}


def _share(file: TextIO) -> None:
    """Mark an open file as in use; raises OSError if it was deleted before that."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise  # somebody is deleting it
    except OSError:
        pass  # no locks here; on Linux what is deleted stays readable for those who have it open
    if not _is_at(file, Path(file.name)):
        raise FileNotFoundError(file.name)


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        there, here = path.stat(), os.fstat(file.fileno())
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
