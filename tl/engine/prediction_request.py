"""What `tl predict` was asked for. Imports no torch, so that a mistake is answered at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tl.data.image_paths import ImagePaths, Inputs, list_images
from tl.engine.prediction_rows import FORMATS
from tl.engine.prediction_work import Work
from tl.errors import UserError
from tl.models.folders import data_of

FEATURE_ENDINGS = (".npy", ".safetensors")


@dataclass(frozen=True)
class Request:
    """Options of `tl predict`; `launch/predict.py` says what each means."""

    model: Path
    inputs: Inputs
    output: Path | None
    """None: standard output"""
    format: str
    """a name in `FORMATS`"""
    probabilities: bool = True
    top_k: int | None = None
    threshold: float = 0.0
    batch_size: int | None = None
    workers: int | None = None
    bad_images: str = "error"
    features: Path | None = None
    features_from: str | None = None
    tta: str | None = None
    cam: Path | None = None
    cam_class: str | None = None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    overwrite: bool = False

    @property
    def views(self) -> int:
        """How many of an image the loader makes; its mirror image is made later."""
        return int(self.tta) if self.tta and self.tta != "flip" else 1

    def check(self) -> None:
        """Look at what takes no time; raises UserError."""
        if self.features_from is not None and self.features is None:
            raise UserError("--features-from says where --features come from; give that too")
        if self.cam_class is not None and self.cam is None:
            raise UserError("--cam-class says what --cam shows; give that too")
        if self.overwrite and self.output is None:
            raise UserError("--overwrite is for what was left of an --output; there is none")
        self.inputs.check()


class Listing:
    """The work folder, and the images in it, which are listed when they are first asked for.

    Of the main process; the others have one that is never asked.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._data = data_of(request.model)
        self._made: tuple[ImagePaths, Work] | None = None
        self._work: Work | None = None

    def made(self) -> tuple[ImagePaths, Work]:
        """The images, and the folder.

        Raises:
            UserError: see `Work.make` and `list_images`.
        """
        if self._made is None:
            self._work = Work.make(self._request.output, self._request.overwrite)
            images = list_images(self._request.inputs, self._data, self._work.folder)
            self._made = images, self._work
        return self._made

    def leave(self) -> Path | None:
        """When the command fails: tidy up; returns the folder if there is something in it."""
        if self._work is None:
            return None
        if self._work.leave():
            return self._work.folder
        if self._request.features is not None:
            partial_features(self._request.features).unlink(missing_ok=True)
        return None


def output_and_format(output: str | None, format_name: str | None) -> tuple[Path | None, str]:
    """Check the output before anything is computed. The format follows from the file's ending.

    Raises:
        UserError: the output cannot become a file, or its ending does not say the format.
    """
    if output is None:
        return None, format_name or "csv"
    path = _file("--output", output, "; leave --output out for a stream")
    ending = path.suffix.lower().removeprefix(".")
    if format_name is None and ending not in FORMATS:
        raise UserError(
            f"--output {output} ends in neither .csv nor .jsonl: rename it, or give --format "
            f"{' or '.join(FORMATS)}"
        )
    return path, format_name or ending


def features_file(features: str | None, output: Path | None) -> Path | None:
    """Check where features are to go.

    Raises:
        UserError: this cannot become such a file, or there is no ``output`` to say what is in it.
    """
    if features is None:
        return None
    if output is None:
        raise UserError(
            "--features needs --output FILE: its column `row` says which row of the features is "
            "which image's"
        )
    path = _file("--features", features, "")
    if path.suffix.lower() not in FEATURE_ENDINGS:
        raise UserError(f"--features {features} ends in neither {' nor '.join(FEATURE_ENDINGS)}")
    if path == output:
        raise UserError(f"--features {features} is --output as well; give each a file of its own")
    return path


def partial_features(features: Path) -> Path:
    """Where features are until they are complete: they may be on another disk than the output."""
    return features.with_name(f"{features.name}.partial")


def cam_folder(cam: str | None) -> Path | None:
    """Check where overlays are to go; raises UserError if that cannot become a folder."""
    if cam is None:
        return None
    path = Path(cam)
    if path.exists() and not path.is_dir():
        raise UserError(f"--cam {cam} is a file; give the name of a folder")
    if not path.exists():
        _check_parent("--cam", cam, path.absolute())
    return path


def _file(option: str, given: str, advice: str) -> Path:
    path = Path(os.path.realpath(given))  # through a link, as cp does
    if path.is_dir():
        raise UserError(f"{option} {given} is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {given} is no plain file{advice}")
    _check_parent(option, given, path)
    return path


def _check_parent(option: str, given: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"{option} {given}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {given}: you may not write to {path.parent}")
