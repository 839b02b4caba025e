"""A confusion matrix as a picture that can be read, for 2 classes and for 1000."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tl.errors import printable
from tl.tracking.pictures import save_png

MOST_WITH_COUNTS = 30
"""Of more classes the cells are too small for numbers."""
MOST_TICKS = 40
MOST_LETTERS = 24


def plot_confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Write a PNG. The colour is the share of the row's images, that is of a class.

    Args:
        counts: (C, C) integers; row the class, column what it was called.
    """
    images, correct = int(counts.sum()), int(np.trace(counts))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    num_classes = len(classes)
    side = min(10.0, max(3.0, 0.5 * num_classes))  # of the matrix, in inches
    # The matrix fills the figure; when it is saved, the figure grows by what stands around it.
    figure = Figure(figsize=(side, side), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    # The square root: one percent of a class is to be seen beside the diagonal.
    drawn = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    axes.set_title(
        f"accuracy {correct / max(1, images):.2%} ({correct:,} of {images:,} images)",
        fontsize=11,
        pad=12,
    )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    _label(axes, classes, side)
    if num_classes <= MOST_WITH_COUNTS:
        _write_counts(axes, counts, shares)
        axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="both", length=0)
    beside = axes.inset_axes((1 + 0.15 / side, 0, 0.2 / side, 1))  # as high as the matrix
    bar = figure.colorbar(
        drawn, cax=beside, label="share of the class", format=PercentFormatter(1.0, decimals=0)
    )
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    save_png(figure, path)


def _label(axes: Axes, classes: Sequence[str], side: float) -> None:
    """Class names at the ticks: every n-th where there are too many."""
    places = range(0, len(classes), math.ceil(len(classes) / MOST_TICKS))
    names = [_short(classes[place]) for place in places]
    longest = max(map(len, names))
    size = 9 if len(classes) <= MOST_WITH_COUNTS else 7
    # A name is text: "$" in it begins no formula.
    axes.set_yticks(places, names, fontsize=size, parse_math=False)
    wide = longest * size / 105  # in inches: the letters are about 0.7 of their size wide
    upright = wide > side / len(places)
    axes.set_xticks(places, names, fontsize=size, parse_math=False, rotation=90 if upright else 0)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    size = 11 if len(counts) <= 10 else 7
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column] or len(counts) <= 10:
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if shares[row, column] > 0.35 else "black",
            )


def _short(name: str) -> str:
    name = printable(" ".join(name.split()))
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
