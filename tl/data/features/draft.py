"""An entry of the cache while it is made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from tl.atomic import from_json, sync, to_json, write_json_atomically
from tl.data.features.entry import FORMAT, Block, check_blocks, is_at
from tl.data.features.folder import PARTIAL, discard
from tl.data.features.layout import Layout
from tl.file_lock import lock


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
            if is_at(file, self.folder / "lock"):
                self._lock = file
                return True
            file.close()  # the other one was done, or has given up, and took the lock along

    def prepare(self) -> None:
        """Make room in the file. What of another layout lies there is deleted."""
        plan = self.folder / "layout.json"
        try:
            same = Layout.from_dict(from_json(plan.read_text("utf-8"))) == self.layout
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
            "blocks": [blocks[i].to_dict() for i in range(self.layout.blocks)],
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
            is_mine = is_at(self._lock, lock_file := self.folder / "lock")
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
                    found[int(record["block"])] = Block.from_dict(record)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # it was being written when the run died
        found = {i: found[i] for i in sorted(found) if 0 <= i < self.layout.blocks}
        mine = list(found)[part::parts]
        good = check_blocks(self.folder, self.layout, found, part, parts, threads)
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
        self._log.write(to_json({"block": block, **record.to_dict()}) + "\n")
        self._log.flush()
        return record

    def close(self) -> None:
        """Put what this process has written on the disk."""
        if self._log is not None:
            os.fsync(self._data)
            os.close(self._data)
            self._log.close()
            self._log = None
