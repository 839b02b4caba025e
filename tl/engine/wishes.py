"""What this process wants all of them to do between two steps."""

from __future__ import annotations

import time

from tl.engine.agreement import Wishes
from tl.engine.state import Run


def wishes(run: Run) -> Wishes:
    """What this process hands in."""
    requests = run.stop_requests
    requests.seconds_to_save = run.writer.slowest
    if not run.runtime.is_main:
        return Wishes(stop=requests.look())
    # With a time limit, the first step is followed by a checkpoint: how long does one take?
    untimed = requests.has_deadline and run.writer.slowest == 0
    minutes = run.config.checkpoint.every_minutes
    due = minutes is not None and time.monotonic() - run.writer.last_began > 60 * minutes
    return Wishes(requests.look(), due or untimed, writing_failed(run))


def stop_agreed(run: Run, doing: str) -> bool:
    """Whether all stop, asked between two batches that are not trained on; all do so alike."""
    run.watchdog.mark(f"after step {run.progress.step}, {doing}")
    run.agreement.tell(run.progress.step, wishes(run))
    run.agreement.hear(everything=False)
    return run.agreement.stop


def writing_failed(run: Run) -> bool:
    """Whether something could not be written and the run has to end for it; else it is said."""
    error = run.writer.error
    if isinstance(error, OSError) and run.config.disk_errors == "continue":
        run.console.say(f"not written, the run goes on (disk_errors=continue): {error}")
        run.writer.error = None
    return run.writer.error is not None
