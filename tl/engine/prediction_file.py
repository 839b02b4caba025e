"""Where predictions go: standard output, or a file that appears when it is complete.

Each process writes its own part, and the main one joins them, so no process ever holds all
results. Imports no torch, so that a wrong output is answered in a fraction of a second.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tl.engine.prediction_rows import FORMATS
from tl.errors import UserError

if TYPE_CHECKING:
    from tl.engine.runtime import Runtime


@dataclass(frozen=True)
class Destination:
    """Where predictions go, and as what."""

    path: Path | None
    """None: standard output"""
    format: str
    """a name in `FORMATS`"""


def destination(output: str | None, format_name: str | None) -> Destination:
    """Check the output before anything is computed. The format follows from the file's ending.

    Raises:
        UserError: the output cannot become a file, or its ending does not say the format.
    """
    if output is None:
        return Destination(None, format_name or "csv")
    path = Path(os.path.realpath(output))  # through a link, as cp does
    if path.is_dir():
        raise UserError(f"--output {output} is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"--output {output} is no plain file; leave --output out for a stream")
    if not path.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {output}: you may not write to {path.parent}")
    ending = path.suffix.lower().removeprefix(".")
    if format_name is None and ending not in FORMATS:
        raise UserError(
            f"--output {output} ends in neither .csv nor .jsonl: rename it, or give --format "
            f"{' or '.join(FORMATS)}"
        )
    return Destination(path, format_name or ending)


@contextlib.contextmanager
def open_output(to: Destination, here: Runtime, encoding_errors: str) -> Iterator[TextIO]:
    """What this process writes its part to; all parts are joined, by rank, at the end.

    Every process must enter this. If the block raises, there is no new file, and no part is left.

    Raises:
        UserError: standard output, from processes on several nodes.
    """
    if to.path is not None:
        folder, name = to.path.parent, to.path.name
    elif here.processes_on_node < here.world_size:
        raise UserError("on several nodes, give --output: a file in a folder that all of them see")
    else:
        folder, name = Path(tempfile.gettempdir()), "predictions"
    folder, token = here.from_main((folder, secrets.token_hex(4)))
    parts = [folder / f".{name}.{token}.{rank}.part" for rank in range(here.world_size)]
    mine = parts[here.rank]
    to_standard_output = here.is_main and to.path is None
    try:
        opened = sys.stdout.fileno() if to_standard_output else mine
        with open(
            opened,
            "w" if to_standard_output else "x",
            encoding="utf-8",
            errors=encoding_errors,
            newline="",
            closefd=not to_standard_output,
        ) as stream:
            yield stream
            if here.is_main:
                here.wait()
                _join(stream, parts[1:])
                if to.path is not None:
                    os.fsync(stream.fileno())
        if here.is_main:
            if to.path is not None:
                mine.replace(to.path)
        else:
            here.wait()
        here.wait()
    finally:
        for part in parts if here.is_main else [mine]:
            part.unlink(missing_ok=True)


def _join(stream: TextIO, parts: list[Path]) -> None:
    """Append files as they are."""
    stream.flush()
    for part in parts:
        with part.open("rb") as file:
            shutil.copyfileobj(file, stream.buffer)
    stream.flush()
