"""The curve of a learning-rate range test as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tl.tracking.pictures import save_png

MOST_LETTERS = 70


def plot_lr_curve(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    lowest: int | None,
    suggestion: float | None,
    title: str,
    path: Path,
) -> None:
    """Write a PNG: the loss of each step over the rate it was taken with, and the suggestion.

    Args:
        lowest: step of the smoothed loss that the suggestion goes by.
        suggestion: a rate; both are None if there is none.
        title: of what it is, such as the network and what trains.
    """
    figure = Figure(figsize=(7, 4.3), dpi=150)
    axes = figure.add_subplot()
    axes.plot(rates, losses, ".", color="0.7", markersize=4, label="of each step")
    axes.plot(rates, smoothed, color="C0", label="smoothed")
    if suggestion is not None and lowest is not None:
        axes.plot(rates[lowest], smoothed[lowest], "o", color="C0", label="lowest")
        axes.axvline(suggestion, color="C3", linestyle="--", label=f"suggested: {suggestion:.1e}")
    axes.set_xscale("log")
    # The last losses are far above what is of interest.
    low, high = min(losses), max(losses[: max(1, len(losses) // 2)])
    room = max(high - low, 1e-3 * abs(high), 1e-12)
    axes.set_ylim(low - 0.05 * room, high + 0.35 * room)
    axes.set_xlabel("learning rate (log scale)")
    axes.set_ylabel("training loss (nats per image)")
    short = title if len(title) <= MOST_LETTERS else title[: MOST_LETTERS - 1] + "…"
    axes.set_title(short, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    save_png(figure, path)
