"""Names in files, read one by one when they are asked for: millions of them take no memory.

`tl.data.names` has them in arrays, for what looks at all of them again and again. Here a process
and its loader's workers look at each name once: to read it takes some microseconds, and nothing of
the file stays in the memory of any of them, as the pages of a mapped file would.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

CHUNK = 8192
"""names that are written or read at a time"""


class NameFile(Sequence[str]):
    """N names that `write` has left in a folder. It may be pickled, and used after a fork.

    Names are as the system has them: what is no UTF-8 is escaped by surrogates. The files are held
    open: they may be deleted or replaced meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` holds ``names``, each ended by NUL, and ``ends``: int64, where each ends."""
        self._folder = folder
        # Read by position: processes that share an open file share its place in it.
        self._names, self._ends = (
            os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("names", "ends")
        )
        for descriptor in (self._names, self._ends):
            weakref.finalize(self, os.close, descriptor)
        self._count = os.fstat(self._ends).st_size // 8

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(self._count)[index]]
        at = range(self._count)[index]
        return self._between(at, at + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, self._count, CHUNK):
            yield from self._between(start, min(start + CHUNK, self._count))

    def __reduce__(self) -> tuple[type[NameFile], tuple[Path]]:
        return NameFile, (self._folder,)

    def _between(self, start: int, stop: int) -> list[str]:
        before = max(0, start - 1)
        ends = np.frombuffer(os.pread(self._ends, 8 * (stop - before), 8 * before), np.int64)
        begin = int(ends[0]) if start else 0
        content = os.pread(self._names, int(ends[-1]) - begin, begin)
        return [name.decode(errors="surrogateescape") for name in content.split(b"\0")[:-1]]


def write(folder: Path, names: Iterable[str]) -> str:
    """Write names to a folder for `NameFile`, in place of old ones; returns their sha256.

    A name holds no NUL byte.
    """
    digest, at = hashlib.sha256(), 0
    staged = [folder / f".{name}.{os.getpid()}.tmp" for name in ("names", "ends")]
    with staged[0].open("wb") as letters, staged[1].open("wb") as ends:
        remaining = iter(names)
        while chunk := list(itertools.islice(remaining, CHUNK)):
            encoded = [name.encode(errors="surrogateescape") + b"\0" for name in chunk]
            content = b"".join(encoded)
            letters.write(content)
            digest.update(content)
            places = at + np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            ends.write(places.tobytes())
            at = int(places[-1])
    staged[0].replace(folder / "names")
    staged[1].replace(folder / "ends")
    return digest.hexdigest()


def repeated(names: Sequence[str], key: Callable[[str], str]) -> np.ndarray:
    """Positions, ascending, of the names that have the ``key`` of an earlier one.

    Takes 24 bytes of memory for each name, and more only for those that are repeated.
    """
    hashes = np.fromiter((hash(key(name)) for name in names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    alike = np.flatnonzero(ordered[1:] == ordered[:-1])
    found, seen, before = [], set(), -2
    for at in alike.tolist():  # the next one has the same hash, which is not yet the same key
        if at != before + 1:
            seen = {key(names[int(order[at])])}
        before, this = at, key(names[int(order[at + 1])])
        if this in seen:
            found.append(int(order[at + 1]))
        seen.add(this)
    return np.array(sorted(found), np.int64)
