"""Pictures of what the network went by: a heat map over what it saw of an image."""

from __future__ import annotations

import io
import re
from pathlib import Path, PurePosixPath

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from tl.atomic import write_bytes_atomically

OPACITY = 0.6
"""of the hottest place; the image shows through, and where it is cold it is as it was"""


def overlay(view: Tensor, heat: Tensor) -> Image.Image:
    """The view uint8 (1 or 3, S, S) of an image, and over it heat (S, S) from 0 to 1."""
    pixels = view.permute(1, 2, 0).cpu().numpy().astype(np.float32)
    hot = heat.float().cpu().numpy()[..., None]
    colours = 255 * matplotlib.colormaps["turbo"](hot[..., 0])[..., :3]
    mixed = pixels + OPACITY * hot * (colours - pixels)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def file_name(position: int, path: str, label: str) -> str:
    """A name for an overlay: no two positions have the same, and none leads out of its folder."""
    stem = PurePosixPath(path.replace("\\", "/")).stem
    return f"{position:08}-{_plain(stem)}-{_plain(label)}.jpg"


def write(folder: Path, name: str, picture: Image.Image) -> None:
    """Write an overlay to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=90)
    write_bytes_atomically(folder / name, [content.getvalue()])


def _plain(text: str) -> str:
    """At most 60 letters, digits, ``_``, ``-`` and ``.``: any file system and shell takes them."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:60]
