"""`tl cache`: what runs keep for later ones, listed and deleted. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tl.cache_folder import cache_folder
from tl.config import CacheConfig
from tl.data.features import folder
from tl.data.features.folder import Listed, in_words
from tl.errors import UserError, unknown
from tl.tracking.console import open_console
from tl.tracking.tables import table

SHOWN = 8
"""characters of a key; any beginning that is no other key's will do"""


def list_cache(cache: CacheConfig) -> None:
    """Show every entry, the least recently used first, and what all of them take."""
    place, console = cache_folder(cache) / "features", open_console()
    found = folder.entries(place)
    if found:
        columns = ["key", "network", "up to", "data", "images", "size", "used"]
        console.show(table("", columns, [_row(entry) for entry in found]))
    total = in_words(sum(entry.bytes for entry in found))
    most = in_words(cache.max_bytes)
    noun = "entry" if len(found) == 1 else "entries"
    console.say(f"{len(found)} {noun}, {total} of {most} (cache.max_bytes), in {place}")
    if indexes := _indexes(cache):
        size = in_words(sum(path.stat().st_size for path in indexes))
        console.say(f"and {len(indexes)} of what is in folders of images, {size}")


def clear_cache(cache: CacheConfig, keys: Sequence[str]) -> None:
    """Delete the entries whose keys begin like one of ``keys``; all, and indexes, if there is none.

    Raises:
        UserError: a key is none, or the beginning of several.
    """
    place, console = cache_folder(cache) / "features", open_console()
    found = folder.entries(place)
    chosen = [_of_key(key, found) for key in keys] if keys else found
    gone = [entry for entry in chosen if folder.delete(entry)]
    for path in _indexes(cache) if not keys else []:
        path.unlink(missing_ok=True)  # processes that have it open keep it
    noun = "entry" if len(gone) == 1 else "entries"
    console.say(f"{len(gone)} {noun} deleted, {in_words(sum(entry.bytes for entry in gone))}")
    if kept := [entry.key[:SHOWN] for entry in chosen if entry not in gone]:
        console.say(f"in use by a run, and not deleted: {', '.join(kept)}")


def _indexes(cache: CacheConfig) -> list[Path]:
    """The files of `tl.data.tree_index`."""
    return sorted(path for path in (cache_folder(cache) / "index").glob("*") if path.is_file())


def _of_key(key: str, found: Sequence[Listed]) -> Listed:
    matches = [entry for entry in found if entry.key.startswith(key)]
    if len(matches) == 1:
        return matches[0]
    if not found:
        raise UserError(f"key {key} is none: nothing is kept in this folder")
    if not matches:
        raise unknown("key", key, [entry.key[:SHOWN] for entry in found], where="tl cache list")
    keys = ", ".join(entry.key[: max(SHOWN, len(key) + 4)] for entry in matches)
    raise UserError(f"key {key} could be {keys}; give more of it")


def _row(entry: Listed) -> list[object]:
    about = entry.about
    data = Path(str(about.get("data", ""))).name
    return [
        entry.key[:SHOWN],
        "(being made)" if entry.is_draft else str(about.get("architecture", "?")),
        str(about.get("cut", "")),
        f"{data}, view {about['view'] + 1}" if isinstance(about.get("view"), int) else data,
        about["rows"] if isinstance(about.get("rows"), int) else None,
        in_words(entry.bytes),
        _ago(time.time() - entry.used),
    ]


def _ago(seconds: float) -> str:
    """``5 min ago``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
