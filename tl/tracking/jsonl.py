"""metrics.jsonl, the record of a run: one JSON object a line, one line for each call of log."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tl.atomic import from_json, to_json, write_text_atomically
from tl.errors import UserError
from tl.tracking.tracker import Metrics, RunInfo

FILE = "metrics.jsonl"


class JsonlTracker:
    """Appends to metrics.jsonl.

    Each line has ``step``, ``epoch`` and ``phase`` where the metrics have them, ``time`` in
    seconds since 1970, and the metrics. A value that is NaN or infinite is null: JSON has no
    other way to write it, and a string in a column of numbers breaks whoever reads it.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._descriptor: int | None = None
        self._unwritten = b""

    def start(self, run: RunInfo) -> None:
        """Open the record. A resumed run takes back every line after the step it goes on from."""
        self._path = run.run_dir / FILE
        lines = read(self._path) if run.resumed else []
        kept = [to_json(line) + "\n" for line in lines if line["step"] <= run.start_step]
        write_text_atomically(self._path, "".join(kept))
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def log(self, metrics: Metrics, step: int) -> None:
        """Append one line, so that ``tail -f`` shows it at once.

        Raises:
            OSError: it cannot be written, or not all of it. The rest is kept, and comes before the
                next line: the record never has half a line in the middle, and none is lost.
        """
        line: dict[str, Any] = {"step": step}
        line |= {key: metrics[key] for key in ("epoch", "phase") if key in metrics}
        line |= {"time": round(time.time(), 3), **metrics}
        self._unwritten += (to_json(line) + "\n").encode()
        self._write()

    def finish(self, summary: dict[str, Any], state: str) -> None:
        """Put the record on the disk and close it."""
        del summary, state
        if self._descriptor is not None:
            self._write()
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self) -> None:
        assert self._descriptor is not None, "log() before start()"
        try:
            while self._unwritten:
                written = os.write(self._descriptor, self._unwritten)
                self._unwritten = self._unwritten[written:]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a record, in order; none if there is no such file.

    A last line without its end, which a crash in the middle of a write leaves, is left out.

    Raises:
        UserError: a line is not one that `JsonlTracker` wrote.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    complete = data.split(b"\n")[:-1]
    lines = []
    for number, text in enumerate(complete, start=1):
        try:
            line = from_json(text)
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise ValueError("no object with a `step`")
        except ValueError as error:
            raise UserError(
                f"{path}:{number} is no line of metrics ({error}). Delete that line."
            ) from None
        lines.append(line)
    return lines
