"""What the best model got wrong, of what the report keeps, for views that have no data at hand."""

from __future__ import annotations

import contextlib

from PIL import Image

from tl.data.images import BadImage
from tl.data.split import Source, Split
from tl.engine.state import Run
from tl.errors import UserError
from tl.report import kept
from tl.report.numbers import class_rows
from tl.report.seen import UNIT
from tl.tracking.findings import Findings, Mistake, write_findings
from tl.tracking.tracker import one_line


def keep_findings(run: Run) -> None:
    """Write ``mistakes/``, for W&B. Training never fails because of it. For the main process."""
    asked = "wandb" in run.trackers.active and run.config.tracking.wandb.mode != "disabled"
    if not asked:
        return
    try:
        found = kept.read_validation(run.run_dir, len(run.source.classes))
        if found is not None and found.step == run.progress.best.get("step"):
            write_findings(run.run_dir, *findings_of(found, run.source))
    except Exception as error:
        with contextlib.suppress(OSError):  # it may be the screen that has failed
            run.console.say(f"W&B gets no tables, the run goes on: {one_line(error)}")


def findings_of(
    found: kept.Validation, source: Source
) -> tuple[Findings, list[Image.Image | None]]:
    """What ``mistakes/`` holds, and an image for each mistake; None if it is not there any more."""
    classes, rows = list(source.classes), found.seen.mistakes
    columns = (rows.ids, rows.labels, rows.classes[:, 0], rows.parts[:, 0])
    mistakes, pictures = [], []
    for place, label, called, parts in zip(*(column.tolist() for column in columns), strict=True):
        name = found.names[place]
        mistakes.append(Mistake(name, classes[label], classes[called], parts / UNIT))
        pictures.append(_read(source.val, place, name))
    per_class = [
        {
            "class": classes[row.number],
            "precision": row.precision,
            "recall": row.recall,
            "f1": row.f1,
            "images": row.images,
        }
        for row in class_rows(found.confusion, len(classes))
    ]
    return Findings(classes, found.confusion.tolist(), per_class, mistakes), pictures


def _read(split: Split, place: int, name: str) -> Image.Image | None:
    try:
        return split.read(place) if split.names[place] == name else None
    except (BadImage, OSError, UserError, IndexError):
        return None
