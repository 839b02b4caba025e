"""The files in a run's folder that are there for its report: ``report/``.

``run.json`` says what was trained, on what and by what; ``times.json`` where the time went and the
memory; ``validation.npz`` what the best model said of the validation images. Arrays are numpy's
without pickle, names are JSON within the same file: it is replaced as a whole.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tl.atomic import from_json, to_json, write_bytes_atomically, write_json_atomically
from tl.errors import UserError
from tl.report.seen import BINS, UNIT, Rows, Seen

FOLDER = "report"
RUN, TIMES, VALIDATION = "run.json", "times.json", "validation.npz"
MOST_BYTES = 2**28
"""of the arrays in a file: a few kilobytes may claim to be more than any memory"""


@dataclass(frozen=True, eq=False)
class Validation:
    """The best model on the validation images."""

    step: int
    images: int
    confusion: np.ndarray
    """int64 (K, 3): class, what it was called, and how many; only where there are any"""
    seen: Seen
    names: Mapping[int, str]
    """of the images in ``seen``, by position"""

    @property
    def right(self) -> int:
        return int(self.confusion[self.confusion[:, 0] == self.confusion[:, 1], 2].sum())


def write_validation(
    run_dir: Path, step: int, confusion: np.ndarray, seen: Seen, names: Sequence[str]
) -> None:
    """Replace ``validation.npz``.

    Args:
        confusion: int64 (C, C), row the class, column what it was called.
        names: of the images that positions are of.
    """
    rows, columns = confusion.nonzero()
    ids = [seen.mistakes.ids, seen.unsure.ids, seen.compared[0]]
    wanted = np.unique(np.concatenate(ids)).tolist()
    about = {"step": step, "names": [names[i] for i in wanted]}
    arrays: dict[str, np.ndarray] = {
        "about": np.frombuffer(to_json(about).encode(), dtype=np.uint8),
        "ids": np.array(wanted, dtype=np.int64),
        "confusion": np.stack([rows, columns, confusion[rows, columns]], axis=1),
        "bins": seen.bins,
        "compared": seen.compared,
    }
    for name, part in (("mistakes", seen.mistakes), ("unsure", seen.unsure)):
        arrays |= {f"{name}_{field.name}": getattr(part, field.name) for field in fields(part)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    _folder(run_dir).mkdir(exist_ok=True)
    write_bytes_atomically(_folder(run_dir) / VALIDATION, [buffer.getvalue()])


def read_validation(run_dir: Path, num_classes: int) -> Validation | None:
    """What `write_validation` wrote, or None if there is no such file.

    Raises:
        UserError: it holds something else.
    """
    path = _folder(run_dir) / VALIDATION
    try:
        with zipfile.ZipFile(path) as file:
            if sum(entry.file_size for entry in file.infolist()) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return _validation({name: arrays[name] for name in arrays.files}, num_classes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not what a run writes there ({error}). Without it the report has no "
            "confusion matrix and no images; delete it"
        ) from None


def _validation(arrays: dict[str, np.ndarray], num_classes: int) -> Validation:
    about = from_json(arrays.pop("about").tobytes())
    for name, array in arrays.items():
        if array.dtype != np.int64:
            raise ValueError(f"{name} is {array.dtype}")
    parts = {}
    for part in ("mistakes", "unsure"):
        rows = Rows(*(arrays[f"{part}_{field.name}"] for field in fields(Rows)))
        count = len(rows.ids)
        expect(rows.ids.ndim == 1 and rows.labels.shape == (count,), part)
        expect(rows.classes.ndim == 2 and len(rows.classes) == count, part)
        expect(rows.classes.shape == rows.parts.shape and rows.classes.shape[1] > 0, part)
        expect(_within(rows.labels, num_classes) and _within(rows.classes, num_classes), part)
        expect(_within(rows.parts, UNIT + 1), part)
        parts[part] = rows
    confusion, bins, compared = arrays["confusion"], arrays["bins"], arrays["compared"]
    expect(confusion.ndim == 2 and confusion.shape[1] == 3, "confusion")
    expect(_within(confusion[:, :2], num_classes) and _within(confusion, 2**40), "confusion")
    expect(bins.shape == (3, BINS) and _within(bins, 2**62), "bins")
    expect(compared.ndim == 2 and len(compared) == 4, "compared")
    expect(_within(compared[1:3], num_classes) and _within(compared[3], UNIT + 1), "compared")
    names = [str(name) for name in about["names"]]
    expect(len(names) == len(arrays["ids"]), "names")
    named = dict(zip(arrays["ids"].tolist(), names, strict=True))
    every = (parts["mistakes"].ids, parts["unsure"].ids, compared[0])
    expect(set(np.concatenate(every).tolist()) <= named.keys(), "names")
    seen = Seen(bins=bins, compared=compared, **parts)
    return Validation(int(about["step"]), int(confusion[:, 2].sum()), confusion, seen, named)


def expect(is_so: bool, what: str) -> None:
    """Raise ValueError unless it is so."""
    if not is_so:
        raise ValueError(f"{what} is of another shape, or out of range")


def _within(values: np.ndarray, below: int) -> bool:
    return bool(((values >= 0) & (values < below)).all())


def write_json(run_dir: Path, name: str, value: Any) -> None:
    """Replace one of the JSON files."""
    _folder(run_dir).mkdir(exist_ok=True)
    write_json_atomically(_folder(run_dir) / name, value)


def read_json(run_dir: Path, name: str) -> dict[str, Any]:
    """One of the JSON files; empty if it is not there or no object."""
    try:
        found = from_json((_folder(run_dir) / name).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _folder(run_dir: Path) -> Path:
    return run_dir / FOLDER
