"""What `tl export` is asked. Imports no torch, so that a mistake is answered at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tl.engine.evaluation_request import Request, request
from tl.errors import UserError, unknown
from tl.export import FORMATS

RESULT = "export.json"
"""what an exported folder says of itself; a folder without it is not overwritten"""


@dataclass(frozen=True)
class Wish:
    """A checked request."""

    asked: Request
    """the model, and which images it is checked on"""
    format: str
    output: Path
    int8: bool
    with_preprocessing: bool
    overwrite: bool
    num_images: int
    """check on so many, chosen by the seed, if there are more"""
    max_accuracy_loss: float | None
    """of int8, as a share of the images; more is an error"""
    licence: str | None


def wish(
    model: Path,
    words: Sequence[str],
    *,
    to: str,
    output: Path | None = None,
    images: Path | None = None,
    int8: bool = False,
    with_preprocessing: bool = False,
    overwrite: bool = False,
    num_images: int = 500,
    batch_size: int = 16,
    max_accuracy_loss: float | None = None,
    licence: str | None = None,
    bad_images: str | None = None,
) -> Wish:
    """Put the request together from the command line.

    Args:
        words: key.path=value.
        output: ``export/FORMAT`` in the model's folder if None.
        images: a folder to check on; None: the run's own validation images.

    Raises:
        UserError: no such model or format, options that do not go together, a folder that is
            there already, or nothing that says which images.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS, "--to")
    for option, given in (("--int8", int8), ("--with-preprocessing", with_preprocessing)):
        if given and to != "onnx":
            raise UserError(f"{option} goes with --to onnx, not with --to {to}")
    if max_accuracy_loss is not None and not int8:
        raise UserError("--max-accuracy-loss is of --int8: give both or neither")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("tl export runs in one process: start it without a launcher")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images} is no folder; give one with images in it")
    asked = request(
        model,
        [*words, *([str(images)] if images is not None else [])],
        batch_size=batch_size,
        bad_images=bad_images,
    )
    output = output or model / "export" / to
    check_place(output, overwrite)
    return Wish(
        asked,
        to,
        output,
        int8,
        with_preprocessing,
        overwrite,
        num_images,
        max_accuracy_loss,
        licence,
    )


def check_place(output: Path, overwrite: bool) -> None:
    """Raise UserError unless a folder can be put there: it must not be, or be an old export."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"--output {output} is a file; give the name of a folder")
    if not any(output.iterdir()):
        return
    if not (output / RESULT).is_file():
        raise UserError(
            f"--output {output} holds something that is no export (no {RESULT}), and it is left "
            "as it is. Give another folder"
        )
    if not overwrite:
        raise UserError(
            f"--output {output} holds an export already; nothing was overwritten. Give --overwrite "
            "or another folder"
        )
