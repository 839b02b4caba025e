"""The folder of what is kept from run to run, and may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path

from tl.config import CacheConfig


def cache_folder(cache: CacheConfig) -> Path:
    """``cache.folder``, or the user's cache folder by the XDG base directory specification."""
    if cache.folder is not None:
        return Path(cache.folder)
    base = os.environ.get("XDG_CACHE_HOME", "")  # by the specification, an absolute path or nothing
    place = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return place / "transfer-launcher"
