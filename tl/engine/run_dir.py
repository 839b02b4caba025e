"""The folder of a run: who may write into it, and what it says of the run as a whole."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tl.arguments import Loaded
from tl.atomic import write_text_atomically
from tl.config import Config
from tl.errors import UserError
from tl.file_lock import lock
from tl.tracking.tracker import CONFIG, RUN_ID

LOCK = ".lock"
SECONDS_TO_WAIT_FOR_ANOTHER = 60.0
"""An orphan whose launcher was killed stops after its step, and writes a checkpoint before."""


def new_name(what: str) -> Path:
    """A folder below runs/ for a run that was given none."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{what}"
    return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def nowhere() -> TextIO:
    """What a process that is not the main one prints to."""
    return Path(os.devnull).open("w")


def of_command(file: str | None, resume: str) -> tuple[str | None, Path | None]:
    """The config to load, and where the run of it is now if that is known.

    A run that goes on has its own config unless it is given another, and is where it lies: it may
    have been moved since that config was written.
    """
    if resume not in ("never", "auto"):
        folder = Path(resume)
        if file is None and not (folder / CONFIG).is_file():
            raise UserError(_no_run(resume))
        return file or str(folder / CONFIG), folder
    own = file is not None and Path(file).name == CONFIG and Path(file).with_name(RUN_ID).is_file()
    return file, Path(file).parent if file and own and resume == "auto" else None


def choose(config: Config, resume: str) -> Path:
    """The folder that a run writes to. `--resume DIR` names that of the run that goes on.

    Raises:
        UserError: it is another run's, or there is no run to go on with.
    """
    if resume in ("never", "auto"):
        if config.run_dir is None and resume == "auto":
            raise UserError("--resume auto needs run_dir: which run should go on?")
        what = f"{config.model.name}-{config.strategy or 'phases'}"
        folder = Path(config.run_dir) if config.run_dir else new_name(what)
    else:
        folder = Path(resume)
        if not (folder / CONFIG).is_file():
            raise UserError(_no_run(resume))
        if config.run_dir is not None and Path(config.run_dir).resolve() != folder.resolve():
            raise UserError(f"--resume {resume} goes on in that folder; leave run_dir out")
    try:
        exists = folder.exists()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"cannot look at run_dir {folder}: {error.strerror}") from error
    if exists and not folder.is_dir():
        raise UserError(f"run_dir {folder} is a file; give the name of a folder")
    if resume == "never" and (folder / CONFIG).exists():
        raise UserError(
            f"run_dir {folder} holds another run. Go on with it by --resume auto, or give "
            "another run_dir; nothing was overwritten."
        )
    return folder


def _no_run(resume: str) -> str:
    return (
        f"--resume {resume}: no run is in that folder (no {CONFIG}). Give the run_dir of a run, "
        "or run_dir=FOLDER --resume auto to start it if there is none"
    )


class Lock:
    """Keeps two jobs from writing to one folder, such as one that was requeued and its orphans."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: TextIO | None = None

    def take(self, say: Callable[[str], None]) -> None:
        """Make the folder and take its lock, once another process has given it back.

        Raises:
            UserError: the folder cannot be written, or another process does not give it back.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._file = self._path.open("a+")
        except (OSError, ValueError) as error:  # the latter: a character that no name can have
            raise UserError(_cannot_write(self._path.parent, error)) from error
        file.seek(0)
        other = f"{file.read().strip()} writes to {self._path.parent}"
        if not lock(
            file, SECONDS_TO_WAIT_FOR_ANOTHER, lambda: say(f"{other}: waiting for it to end")
        ):
            self.release()
            raise UserError(f"{other}: end it, or give another run_dir")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def claim(run_dir: Path, loaded: Loaded) -> str:
    """Make the folder this run's own, and return the run's id.

    A run that goes on keeps its id.
    """
    try:
        config = run_dir / CONFIG
        if not config.exists() or config.read_text() != loaded.to_yaml():
            write_text_atomically(config, loaded.to_yaml())
        run_id = run_dir / RUN_ID
        if not run_id.exists():
            write_text_atomically(run_id, secrets.token_hex(4))
        return run_id.read_text().strip()
    except OSError as error:
        raise UserError(_cannot_write(run_dir, error)) from error


def _cannot_write(run_dir: Path, error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else error
    return f"cannot write to run_dir {run_dir}: {reason}"
