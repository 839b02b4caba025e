"""Pictures that are written in one step."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the picture so that no reader finds half of it."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    FigureCanvasAgg(figure)
    try:
        with warnings.catch_warnings():
            # A script that the font lacks, such as Chinese, is drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(staged, format="png", bbox_inches="tight", pad_inches=0.15)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
