"""How an image becomes a network's input: what a network's weights were trained with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode

from tl.atomic import from_json
from tl.errors import UserError, brief
from tl.models import folders, published, timm_models
from tl.models.zoo import LARGEST_SIZE
from tl.paths import is_weights_path

_INTERPOLATIONS = [mode.value for mode in InterpolationMode]


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter edge, crop the centre, scale to [0, 1], subtract mean, divide by std."""

    resize_size: int
    crop_size: int
    mean: tuple[float, ...]  # a number for each channel of an image, of which there are 1 or 3
    std: tuple[float, ...]
    interpolation: str
    antialias: bool = True

    @property
    def channels(self) -> int:
        """1: grey images, 3: RGB."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: lists for tuples."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises UserError for missing, unknown or wrong values."""
        try:
            made = cls(
                **{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])},
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"preprocessing {brief(values)} is not complete: {error}") from error
        sizes = (made.resize_size, made.crop_size)
        if (
            not all(isinstance(n, (int, float)) and abs(n) < 1e6 for n in (*made.mean, *made.std))
            or (len(made.mean), len(made.std)) not in ((1, 1), (3, 3))
            or not all(made.std)
            or not all(isinstance(n, int) and 0 < n <= LARGEST_SIZE for n in sizes)
            or made.interpolation not in _INTERPOLATIONS
            or not isinstance(made.antialias, bool)
        ):
            raise UserError(
                f"preprocessing {brief(values)} is not valid: sizes are whole numbers from 1 to "
                f"{LARGEST_SIZE:,}, mean and std three numbers each (grey: one), no std of 0, and "
                f"interpolation is one of {', '.join(_INTERPOLATIONS)}."
            )
        return made


def preprocessing_of(architecture: str, weights: str | None) -> Preprocessing:
    """The preprocessing that ``weights`` of ``architecture`` were trained with.

    A run folder or model folder says so itself. For another file, and for None, it is that of the
    architecture's DEFAULT weights. Source: the ``transforms()`` of torchvision's weights, and
    timm's data config. Raises UserError for unknown names and a broken folder.
    """
    is_path = weights is not None and is_weights_path(weights)
    if weights is not None and is_path:
        folder = folders.model_folder(Path(weights).expanduser())
        if folder is not None:
            return _of_folder(folder)
    name = "DEFAULT" if weights is None or is_path else weights
    if timm_models.is_timm(architecture):
        return _of_timm(architecture)
    return _of_torchvision(published.entry(architecture, name))


def with_image_size(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """The same for images of ``size`` pixels; the resized edge keeps its ratio to the crop."""
    if not 1 <= size <= LARGEST_SIZE:
        raise UserError(f"image_size is {size}: it must be from 1 to {LARGEST_SIZE:,}.")
    resize = round(size * preprocessing.resize_size / preprocessing.crop_size)
    return dataclasses.replace(preprocessing, resize_size=resize, crop_size=size)


def with_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """The same for grey images, or for RGB: grey has the mean of the three means and stds."""
    if channels == preprocessing.channels:
        return preprocessing
    mean, std = (
        (math.fsum(values) / len(values),) * channels
        for values in (preprocessing.mean, preprocessing.std)
    )
    return dataclasses.replace(preprocessing, mean=mean, std=std)


def _of_torchvision(entry: WeightsEnum) -> Preprocessing:
    t = entry.transforms()
    return Preprocessing(
        resize_size=t.resize_size[0],
        crop_size=t.crop_size[0],
        mean=tuple(t.mean),
        std=tuple(t.std),
        interpolation=t.interpolation.value,
        # None means True for images since torchvision 0.17.
        antialias=t.antialias is not False,
    )


def _of_timm(architecture: str) -> Preprocessing:
    timm = timm_models.library(architecture)
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm_models.pretrained_config(architecture)
    )
    crop = int(config["input_size"][-1])
    return Preprocessing(
        # As timm.data.create_transform computes it.
        resize_size=math.floor(crop / config["crop_pct"]),
        crop_size=crop,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _of_folder(folder: Path) -> Preprocessing:
    config = folder / "config.json"
    try:
        values = from_json(config.read_bytes())["preprocessing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config} does not say how images are prepared: {error!r}") from error
    return Preprocessing.from_dict(values)
