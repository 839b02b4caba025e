"""``mistakes/`` in a run's folder: what the best model got wrong, for views of a run.

``findings.json`` holds the classes, the confusion matrix, the numbers of each class and the
mistakes of highest probability; beside it are small JPEGs of their images. So a run can be shown,
or sent to W&B later, where its data is not.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tl.atomic import from_json, write_bytes_atomically, write_json_atomically
from tl.errors import UserError, printable

FOLDER, FILE = "mistakes", "findings.json"
MOST_MISTAKES = 64
SIDE = 224
"""pixels of the longer side of a picture"""


@dataclass(frozen=True)
class Mistake:
    """An image that was called what it is not."""

    file: str
    label: str
    predicted: str
    probability: float
    """of ``predicted``"""
    picture: str = ""
    """the name of its JPEG; empty if it could not be read again"""


@dataclass(frozen=True)
class Findings:
    """What the best model said of the validation images."""

    classes: list[str]
    confusion: list[list[int]]
    """[class, what it was called, how many]; only where there are any"""
    per_class: list[dict[str, Any]]
    """class, precision, recall, f1 and number of images"""
    mistakes: list[Mistake]


def write_findings(run_dir: Path, found: Findings, pictures: Sequence[Image.Image | None]) -> None:
    """Replace what there is; ``pictures`` are those of the mistakes, None where there is none."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    mistakes = []
    for i, (mistake, picture) in enumerate(zip(found.mistakes, pictures, strict=True)):
        name = ""
        if picture is not None:
            name = f"{i:03}.jpg"
            write_bytes_atomically(folder / name, [_jpeg(picture)])
        mistakes.append({**asdict(mistake), "file": printable(mistake.file), "picture": name})
    write_json_atomically(folder / FILE, {**asdict(found), "mistakes": mistakes})
    shown = {mistake["picture"] for mistake in mistakes}
    for old in folder.glob("[0-9][0-9][0-9].jpg"):
        if old.name not in shown:
            old.unlink(missing_ok=True)


def read_findings(run_dir: Path) -> Findings | None:
    """What `write_findings` wrote; None if it never has.

    Raises:
        UserError: the file is not one that it wrote.
    """
    path = run_dir / FOLDER / FILE
    try:
        values = from_json(path.read_bytes())
        mistakes = [Mistake(**mistake) for mistake in values.pop("mistakes")]
        # Only a file beside it: the folder may be anybody's.
        assert all(Path(m.picture).name == m.picture for m in mistakes)
        return Findings(**values, mistakes=mistakes)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise UserError(f"{path} is not as a run wrote it ({error}). Delete it.") from None


def _jpeg(picture: Image.Image) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()
