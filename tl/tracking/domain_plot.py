"""Features of two domains as points in the plane: colour is the class, form is the domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tl.errors import printable
from tl.tracking.pictures import save_png

COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442",
)  # fmt: skip
"""Okabe and Ito's, "Color Universal Design", 2008: told apart with any kind of colour vision. There
are no more of that kind, so of more classes those with the most images have them."""
OTHER, UNKNOWN = "0.78", "0.45"
SOURCE, TARGET = "o", "x"
MOST_LETTERS = 24


@dataclass(frozen=True)
class Points:
    """N images of both domains, as one network sees them."""

    title: str
    told: str
    """how well the domains are told apart, in words"""
    principal: np.ndarray
    """(N, 2)"""
    variance: Sequence[float]
    """shares of the two components, of all variance"""
    near: np.ndarray
    """(N, 2), by t-SNE"""
    labels: np.ndarray
    """(N,) int64: positions in the classes, −1 where nobody knows"""
    is_target: np.ndarray
    """(N,) bool"""


def plot_domains(columns: Sequence[Points], classes: Sequence[str], path: Path) -> None:
    """Write a PNG: a column for each network, by principal components above and t-SNE below."""
    figure = Figure(figsize=(4.2 * len(columns) + 1.6, 8.4), dpi=150, layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False)
    colour_of = _colours(columns[0].labels, len(classes))
    for column, points in enumerate(columns):
        above, below = grid[:, column]
        above.set_title(f"{points.title}\n{points.told}", fontsize=10, parse_math=False)
        _scatter(above, points.principal, points, colour_of)
        first, second = points.variance
        above.set_xlabel(f"first principal component ({first:.0%} of the variance)", fontsize=9)
        above.set_ylabel(f"second ({second:.0%})", fontsize=9)
        _scatter(below, points.near, points, colour_of)
        below.set_xlabel("t-SNE: who is near is meant, distances are not", fontsize=9)
    # A name is text: "$" in it begins no formula.
    legend = figure.legend(
        handles=_legend(columns[0], classes, colour_of), loc="outside right upper", fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_png(figure, path)


def _colours(labels: np.ndarray, num_classes: int) -> list[str]:
    """A colour for each class."""
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    most = np.sort(np.argsort(-counts, kind="stable")[: len(COLOURS)])
    colours = [OTHER] * num_classes
    for colour, label in zip(COLOURS, most, strict=False):
        colours[label] = colour
    return colours


def _scatter(axes: Axes, xy: np.ndarray, points: Points, colour_of: Sequence[str]) -> None:
    colours = np.array([*colour_of, UNKNOWN])[points.labels]  # −1 is the last
    # The target above the source, and what has no colour below both.
    for dull in (True, False):
        for marker, domain in ((SOURCE, ~points.is_target), (TARGET, points.is_target)):
            chosen = domain & (np.isin(colours, (OTHER, UNKNOWN)) == dull)
            x, y = xy[chosen].T
            edge = {"linewidths": 0.9} if marker == TARGET else {"linewidths": 0}
            axes.scatter(x, y, 14, c=colours[chosen], marker=marker, alpha=0.8, **edge)
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(points: Points, classes: Sequence[str], colour_of: Sequence[str]) -> list[Line2D]:
    def entry(marker: str, colour: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=label)

    entries = [entry(SOURCE, "0.2", "source"), entry(TARGET, "0.2", "target")]
    entries.append(entry("", "none", ""))
    for name, colour in zip(classes, colour_of, strict=True):
        if colour != OTHER:
            entries.append(entry("s", colour, _short(name)))
    if (others := list(colour_of).count(OTHER)) > 0:
        entries.append(entry("s", OTHER, f"{others} other class" + ("es" if others > 1 else "")))
    if (points.labels < 0).any():
        entries.append(entry(TARGET, UNKNOWN, "class not known"))
    return entries


def _short(name: str) -> str:
    name = printable(" ".join(name.split()))
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
