"""What `tl evaluate` is asked: which model, on which data, and where the results go.

Imports no torch, so that a mistake is answered in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tl import arguments
from tl.atomic import to_json
from tl.command import is_override
from tl.config import Config
from tl.engine.run_dir import CONFIG
from tl.errors import UserError, did_you_mean
from tl.models.folders import data_of, kept


@dataclass(frozen=True)
class Request:
    """A checked request."""

    model: Path
    """a run's folder or a model's"""
    folder: Path | None
    """class folders; None: the validation data of the config"""
    config: Config
    """the run's, with what was overridden; defaults for a model that came without"""
    output: Path
    batch_size: int
    run: Path | None = None
    """the folder of the run that the model is of, where there is one"""


def request(
    model: Path,
    words: Sequence[str],
    *,
    output: Path | None = None,
    batch_size: int = 64,
    bad_images: str | None = None,
) -> Request:
    """Put the request together from the command line.

    Args:
        words: at most one folder; the others are key.path=value.
        output: ``evaluation`` in the model's folder if None.

    Raises:
        UserError: no such model, a mistake in an override, or nothing that says which data.
    """
    folders = [Path(word) for word in words if not is_override(word)]
    if len(folders) > 1:
        raise UserError(
            f"{' and '.join(map(str, folders))}: one folder at a time, other arguments are "
            "key.path=value"
        )
    if not model.is_dir():
        beside = [entry.name for entry in model.parent.iterdir()] if model.parent.is_dir() else []
        what = "is a file" if model.exists() else "does not exist"
        raise UserError(
            f"{model} {what}.{did_you_mean(model.name, beside)} Give the folder of a run or a model"
        )
    overrides = [word for word in words if is_override(word)]
    if bad_images is not None:
        overrides.append(f"data.bad_images={bad_images}")
    # What the run asked of its machine, or forgave its data, is not asked of this one.
    own = ["num_processes=null", "threads=null", "data.workers=null", "data.bad_images=error"]
    # Nor are its phases needed, and a strategy may name code: that of a folder is not run.
    own.append("strategy=head")
    config_file = _config_file(model)
    if config_file is None:  # the model itself knows which files were images, and as which pixels
        as_trained = kept(data_of(model)).items()
        own += [f"data.{key}={to_json(value)}" for key, value in as_trained]
    loaded = arguments.load(config_file, [*own, *overrides], environ={})
    if not folders and config_file is None and not loaded.tree["data"].keys() & {"source", "root"}:
        raise UserError(
            f"there is no {CONFIG} in {model} that says which data to evaluate on. Give a folder "
            "with a folder of images for each class, or data.source=NAME"
        )
    source = loaded.config.data.source
    is_code = ":" in source and not source.startswith("torchvision:")
    if is_code and not folders and f"data.source={source}" not in overrides:
        raise UserError(
            f"{config_file} names code as its data source. If you trust it, say so: "
            f"data.source={source}"
        )
    output = output or model / "evaluation"
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give the name of a folder")
    folder = folders[0] if folders else None
    run = config_file.parent if config_file is not None else None
    return Request(model, folder, loaded.config, output, batch_size, run)


def _config_file(model: Path) -> Path | None:
    """The config of the run that a model is of: in its folder, or in the one above."""
    places = (model / CONFIG, model.resolve().parent / CONFIG)
    return next((place for place in places if place.is_file()), None)
