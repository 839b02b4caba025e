"""What is looked at before a job queues: what would fail after hours of waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tl.arguments import Loaded
from tl.data.features.folder import free_bytes, in_words
from tl.engine import run
from tl.errors import UserError

PROBE_BYTES = 32 * 2**20
MODELS = 3
"""besides the checkpoints: best, last, and one that is being written"""


def check(loaded: Loaded, folder: Path, lead: int, say: Callable[[str], None]) -> None:
    """Open the data, load the weights, and see that checkpoints fit the disk and the time.

    Args:
        loaded: on this machine's processor, whatever the job trains on.
        folder: of the run; made if it is not there.
        lead: seconds that the job has to save in, when Slurm says that its time is over.

    Raises:
        UserError: what would end the run before it trains; too little space or time to save.
    """
    size = int(run.run(loaded, dry_run=True)["checkpoint_bytes"])
    folder.mkdir(parents=True, exist_ok=True)
    needed = size * (loaded.config.checkpoint.keep + MODELS)
    if needed > (free := free_bytes(folder)):
        raise UserError(
            f"checkpoints and models would take about {in_words(needed)}, and {in_words(free)} are "
            f"free in {folder}: make room, or give another run_dir"
        )
    seconds = size / _bytes_per_second(folder)
    # One may be under way when the news comes, and the step that trains then ends first.
    if 2 * seconds > lead / 2:
        raise UserError(
            f"a checkpoint of {in_words(size)} takes about {seconds:.0f} s in {folder}: give "
            f"lead={int(5 * seconds) + 60}, or a faster disk as run_dir"
        )
    say(f"a checkpoint is about {in_words(size)}, {seconds:.1f} s on this disk; lead is {lead} s")


def _bytes_per_second(folder: Path) -> float:
    """How fast a file is written there, down to the disk."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        began = time.perf_counter()
        with probe.open("wb") as file:
            for _ in range(32):
                file.write(os.urandom(PROBE_BYTES // 32))
            file.flush()
            os.fsync(file.fileno())
        return PROBE_BYTES / (time.perf_counter() - began)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    finally:
        probe.unlink(missing_ok=True)
