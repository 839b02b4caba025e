"""What tells whether the images of a split are still the same, without reading them all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np

from tl.data.images import BadImage
from tl.data.split import AnyImages

BLOCK = 4096
"""Images that one process looks at before the next. The fingerprint may not depend on how many
processes there are, so it is made of the digests of such blocks."""
SAMPLES = 8

Gather = Callable[[list[tuple[int, str]]], list[tuple[int, str]]]


def fingerprint(split: AnyImages, part: int, parts: int, from_all: Gather) -> str:
    """A hash of the images' names and of what they are; the same on every process.

    Of a file this is its size and when it was last changed, and of a few files their pixels, which
    show whether they are still decoded in the same way. Images that are no files (arrays, an
    archive) are read, all of them.

    Args:
        part, parts: which of the processes this is; each looks at its share.
        from_all: the lists of all processes, one after another.
    """
    blocks = range(0, len(split), BLOCK)
    mine = [(start, _digest(split, start)) for start in blocks[part::parts]]
    digest = hashlib.sha256(f"{len(split)}".encode())
    for start, of_block in sorted(from_all(mine)):
        digest.update(f"{start} {of_block}".encode())
    return digest.hexdigest()


def _digest(split: AnyImages, start: int) -> str:
    ids = range(start, min(start + BLOCK, len(split)))
    digest = hashlib.sha256()
    files = split.root is not None
    for i in ids:
        name = split.names[i]
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        if files:
            try:
                stat = os.stat(os.path.join(str(split.root), name))  # noqa: PTH116, PTH118 - a million
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}\0".encode())
            except OSError:
                files = os.path.lexists(os.path.join(str(split.root), name))  # noqa: PTH118
                digest.update(b"missing\0")
    seen = ids
    if files and start == 0:
        seen = range(0, len(split), max(1, len(split) // SAMPLES))
    elif files:
        seen = range(0)
    for i in seen:
        digest.update(_pixels(split, i))
    return digest.hexdigest()


def _pixels(split: AnyImages, i: int) -> bytes:
    try:
        image = split.read(i)
    except BadImage as bad:
        return str(bad.reason).encode("utf-8", "surrogateescape")
    data = np.ascontiguousarray(np.asarray(image))
    return hashlib.sha256(f"{data.shape} {data.dtype}".encode() + data.tobytes()).digest()
