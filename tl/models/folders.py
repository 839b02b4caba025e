"""Where a model folder is, and what it says of the files that its images were. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tl.atomic import from_json
from tl.config import DataConfig
from tl.errors import UserError, brief

KEPT = ("background", "decode", "extensions")
"""the data keys that a model is used with as it was trained: which files count, as which pixels"""


def model_folder(path: Path) -> Path | None:
    """The model folder that ``path`` is, holds as a run folder, or lies in as its weights file."""
    for folder in (path / "model", path):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    if path.name == "model.safetensors" and (path.parent / "config.json").is_file():
        return path.parent
    return None


def kept(data: DataConfig) -> dict[str, Any]:
    """What a model folder keeps of the data keys of its run."""
    return {key: getattr(data, key) for key in KEPT}


def data_of(path: Path) -> DataConfig:
    """The data keys that the model in ``path`` was trained with: those of `KEPT`, else defaults.

    A folder without them is one of an older version. Where there is no model, or none that can be
    read, these are defaults too: whoever loads it says so.

    Raises:
        UserError: they are there and are none.
    """
    folder = model_folder(path)
    try:
        config = from_json((folder / "config.json").read_bytes()) if folder else None
    except (OSError, ValueError):
        config = None
    values = config.get("data", {}) if isinstance(config, dict) else {}
    try:
        if not isinstance(values, dict):
            raise TypeError
        return DataConfig(**{key: values[key] for key in KEPT if key in values})
    except (TypeError, ValidationError):
        raise UserError(
            f"{path} was trained with data keys that are none: {brief(values)}. Expected "
            f"{', '.join(KEPT)} as in a run's config; without `data` in its config.json it is "
            "used with their defaults"
        ) from None
