"""status.json: what state a run is in, for whoever did not see its exit code."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tl.atomic import from_json, write_json_atomically
from tl.errors import UserError

State = Literal["running", "done", "failed", "preempted"]
FILE = "status.json"
SECONDS_BETWEEN = 10.0
"""How often the step of a run that goes on is written, at most."""


def write_status(
    run_dir: Path, state: State, step: int, exit_code: int | None = None, message: str = ""
) -> None:
    """Replace the status of a run. ``exit_code`` is what the command ends with, None while it runs.

    It is needed because a launcher of several processes flattens every failure to exit code 1.
    """
    status = {
        "state": state,
        "exit_code": exit_code,
        "step": step,
        "message": message,
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json_atomically(run_dir / FILE, status)


class LiveStatus:
    """Keeps the step in the status of a run up to date while it goes on."""

    def __init__(self, run_dir: Path | None) -> None:
        """Without a folder, as on all processes but one, nothing is written."""
        self._run_dir = run_dir
        self._written = time.monotonic()

    def reached(self, step: int) -> None:
        """Called after each step; few calls write. One that fails is passed over.

        A full disk is noticed where it matters: by the record and the checkpoints.
        """
        now = time.monotonic()
        if self._run_dir is not None and now - self._written >= SECONDS_BETWEEN:
            self._written = now
            with contextlib.suppress(OSError, UserError):
                status = read_status(self._run_dir)
                if status and status["state"] == "running":  # no other process has failed
                    write_status(self._run_dir, "running", step)


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """The status of a run, or None if it has not written one.

    Raises:
        UserError: the file is not one that `write_status` wrote.
    """
    path = run_dir / FILE
    try:
        status = from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}. Delete it if the run is over.") from None
    if not isinstance(status, dict) or "state" not in status:
        raise UserError(f"{path} holds no `state`. Delete it if the run is over.")
    return status
