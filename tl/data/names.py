"""A million names in the memory of their letters: a sequence of strings that are made when read.

A list of a million Python strings takes 100 MB in each process, and a forked loader worker gets a
copy of it bit by bit, as it counts references. `Names` is one array of bytes and one of positions,
which may both lie in a file: processes then share the pages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

CHUNK = 65_536
"""names that are worked on at a time"""


class Names(Sequence[str]):
    """N names out of M that are kept in two arrays. A name holds no NUL byte; each ends with one.

    Names are as the system has them: what is no UTF-8 is escaped by surrogates.
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray, at: range | np.ndarray) -> None:
        """
        Args:
            blob: uint8, the M names one after another.
            ends: (M + 1,) int64, where in the blob each name starts, and where the last ends.
            at: (N,) int64, which of the names are meant; or a range of step 1.
        """
        self._blob, self._ends, self._at = blob, ends, at

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """The names of any sequence, in arrays of their own."""
        encoded = [name.encode(errors="surrogateescape") + b"\0" for name in names]
        ends = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=ends[1:])
        blob = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(blob, ends, range(len(encoded)))

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """The names of all parts, in their order; copied unless the parts share their arrays."""
        if not parts:
            return cls.of([])
        first = parts[0]
        if any(part._blob is not first._blob for part in parts):
            return cls._copied(parts)
        ranges = [part._at for part in parts if isinstance(part._at, range)]
        if len(ranges) == len(parts) and all(
            one.stop == other.start for one, other in pairwise(ranges)
        ):
            return cls(first._blob, first._ends, range(ranges[0].start, ranges[-1].stop))
        return cls(
            first._blob,
            first._ends,
            np.concatenate([np.asarray(part._at, np.int64) for part in parts]),
        )

    @classmethod
    def _copied(cls, parts: Sequence[Names]) -> Names:
        arrays = [part.arrays() for part in parts]
        before = np.cumsum([0, *(len(blob) for blob, _ in arrays)])
        ends = [ends[1:] + start for (_, ends), start in zip(arrays, before, strict=False)]
        blob = np.concatenate([blob for blob, _ in arrays])
        return cls(
            blob,
            np.concatenate([np.zeros(1, np.int64), *ends]),
            range(sum(map(len, parts))),
        )

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        at = int(self._at[index])
        name = self._blob[self._ends[at] : self._ends[at + 1] - 1].tobytes()
        return name.decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for chunk in in_chunks(self):
            for name in chunk:
                yield name.decode(errors="surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Names], tuple[object, ...]]:
        blob, ends = self.arrays()  # not the others, and not the file, which may be gone by then
        return Names, (blob, ends, range(len(self)))

    def take(self, indices: np.ndarray) -> Names:
        """The names at these positions, 0 to N - 1; no letter is copied."""
        return Names(self._blob, self._ends, self._places(indices))

    def encoded(self, indices: np.ndarray) -> list[bytes]:
        """The bytes of the names at these positions: many times as fast as one by one."""
        letters, _ = self._gathered(indices)
        return letters.tobytes().split(b"\0")[:-1]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The letters (uint8) and the ends (N + 1, int64, from 0) of these names alone."""
        if isinstance(self._at, range):
            ends = self._ends[self._at.start : self._at.stop + 1]
            return self._blob[ends[0] : ends[-1]], ends - ends[0]
        return self._gathered(np.arange(len(self)))

    def _places(self, indices: np.ndarray) -> np.ndarray:
        if isinstance(self._at, range):
            return indices + self._at.start
        return self._at[indices]

    def _gathered(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = self._places(indices)
        starts, lengths = self._ends[at], self._ends[at + 1] - self._ends[at]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        # Of each letter that is wanted: where it is in the blob.
        letters = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
        return self._blob[letters], ends


def in_chunks(names: Sequence[str]) -> Iterator[list[bytes]]:
    """The names as bytes, some at a time."""
    for start in range(0, len(names), CHUNK):
        yield _encoded(names, np.arange(start, min(start + CHUNK, len(names))))


def hashes(names: Sequence[str], indices: np.ndarray, salt: str) -> np.ndarray:
    """(N, 2) uint64: the names at these positions, hashed with the salt."""
    salted = f"{salt}\0".encode(errors="surrogateescape")

    def digest(name: bytes) -> bytes:
        return hashlib.blake2b(salted + name, digest_size=16).digest()

    found = np.empty((len(indices), 2), dtype=np.uint64)
    for start in range(0, len(indices), CHUNK):
        part = indices[start : start + CHUNK]
        joined = b"".join(map(digest, _encoded(names, part)))
        found[start : start + CHUNK] = np.frombuffer(joined, dtype=">u8").reshape(-1, 2)
    return found


def taken(names: Sequence[str], indices: np.ndarray) -> Sequence[str]:
    """The names at these positions."""
    if isinstance(names, Names):
        return names.take(indices)
    return [names[i] for i in indices]


def _encoded(names: Sequence[str], indices: np.ndarray) -> list[bytes]:
    if isinstance(names, Names):
        return names.encoded(indices)
    return [names[i].encode(errors="surrogateescape") for i in indices]
