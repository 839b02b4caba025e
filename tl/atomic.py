"""Files that hold the old text or the new one, never half of it; JSON that any reader takes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_bytes_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write ``parts`` to ``path`` so that a reader, or a crash, finds the old file or the new one.

    The content is on the disk before it takes the old one's place.
    """
    # A plain name beside the target, not a NamedTemporaryFile: that one is private to its owner,
    # and what a run leaves is for the group to read as its umask says.
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; see `write_bytes_atomically`."""
    write_bytes_atomically(path, [text.encode()])


def write_json_atomically(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; see `write_text_atomically` and `to_json`."""
    write_text_atomically(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON. NaN and infinities, which JSON does not have, become null."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # A file name that is no UTF-8 holds lone surrogates; UTF-8 cannot, but JSON has escapes.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def from_json(text: str | bytes) -> Any:
    """The value that JSON stands for.

    Raises:
        ValueError: it is not JSON, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def sync(path: Path) -> None:
    """Put a file, or the entries of a folder, on the disk: they then outlive a loss of power.

    A rename lasts only when its folder is synced, which has a cache of its own.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
