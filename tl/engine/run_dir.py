"""The folder of a run: who may write into it, and what it says of the run as a whole."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any, TextIO

from tl import arguments
from tl.arguments import Loaded
from tl.atomic import write_text_atomically
from tl.errors import UserError

CONFIG, RUN_ID = "config.yaml", "run_id"

# What may differ when a run goes on, of the keys that are compared.
FREE_ON_RESUME = ("data.workers",)


def new_name(what: str) -> Path:
    """A folder below runs/ for a run that was given none."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{what}"
    return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def nowhere() -> TextIO:
    """What a process that is not the main one prints to."""
    return Path(os.devnull).open("w")


def check_free(run_dir: Path, resume: str) -> None:
    """Refuse a folder that another run has, or that cannot be written.

    Raises:
        UserError: with what to do about it.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir {run_dir} is a file; give the name of a folder")
    if resume == "never" and (run_dir / CONFIG).exists():
        raise UserError(
            f"run_dir {run_dir} holds another run. Go on with it by --resume auto, or give "
            "another run_dir; nothing was overwritten."
        )


def claim(run_dir: Path, loaded: Loaded) -> str:
    """Make the folder this run's own, and return the run's id.

    A run that goes on keeps its config and its id.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / CONFIG).exists():
            write_text_atomically(run_dir / CONFIG, loaded.to_yaml())
        run_id = run_dir / RUN_ID
        if not run_id.exists():
            write_text_atomically(run_id, secrets.token_hex(4))
        return run_id.read_text().strip()
    except OSError as error:
        raise UserError(f"cannot write to run_dir {run_dir}: {error.strerror}") from error


def check_same_run(run_dir: Path, loaded: Loaded) -> None:
    """Refuse to go on with a run whose config computes something else.

    Raises:
        UserError: lists each key that differs, with both values.
    """
    if not (run_dir / CONFIG).exists():
        return
    before = _flat(_as_dict(arguments.load(run_dir / CONFIG, environ={})))
    now = _flat(_as_dict(loaded))
    lines = [
        f"  {key}: {json.dumps(before.get(key))} before, {json.dumps(now.get(key))} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _is_free(key)
    ]
    if lines:
        differences = "\n".join(lines)
        raise UserError(
            f"the run in {run_dir} cannot go on with another config:\n{differences}\n"
            "Undo these changes, or start a new run with another run_dir."
        )


def _as_dict(loaded: Loaded) -> dict[str, Any]:
    """What a run computes: its phases with every key filled in stand for strategy and defaults."""
    whole = loaded.config.model_dump(include={"seed", "mixed_precision", "data", "model"})
    return {**whole, "phases": {str(i): p.model_dump() for i, p in enumerate(loaded.phases)}}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME)
