"""Whether the folders that a run writes to can be written, and have room."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tl.cache_folder import cache_folder
from tl.config import Config
from tl.engine.doctor.findings import GIB, Finding, gib, note, ok, problem


def folders(config: Config) -> list[Finding]:
    """Of ``run_dir`` and of the cache. What is not there yet is not made."""
    run_dir = Path(config.run_dir) if config.run_dir else Path("runs")
    return [
        writable("run_dir", run_dir, "give another place by run_dir=FOLDER"),
        writable("cache", cache_folder(config.cache), "give another place by cache.folder=FOLDER"),
    ]


def writable(what: str, folder: Path, elsewhere: str) -> Finding:
    """Write a little file where ``folder`` is, or would be made, and take it away again."""
    try:
        here = _nearest(folder.absolute())
        with tempfile.NamedTemporaryFile(dir=here, prefix=".tl-doctor-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        usage = shutil.disk_usage(here)
        status = os.statvfs(here)
    except OSError as error:
        why = error.strerror or str(error)
        return problem(what, f"{folder} cannot be written: {why}", f"mend that, or {elsewhere}")
    text = f"{folder} can be written, {gib(usage.free)} of {gib(usage.total)} free"
    if usage.free < GIB:
        return problem(what, f"{text}: too little for checkpoints", f"make room, or {elsewhere}")
    if status.f_files and not status.f_favail:
        return problem(what, f"{text}, but no more files", f"delete some, or {elsewhere}")
    if usage.free < 10 * GIB:
        return note(what, f"{text}: little for checkpoints", f"make room, or {elsewhere}")
    return ok(what, text)


def _nearest(folder: Path) -> Path:
    """The folder itself or the nearest one above it that is there."""
    while not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise NotADirectoryError(20, f"{folder} is no folder")
        folder = folder.parent
    return folder
