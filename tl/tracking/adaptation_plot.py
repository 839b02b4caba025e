"""How an adaptation went: curves from the record of the run, and the target class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tl.errors import printable
from tl.tracking.pictures import save_png

BEFORE, AFTER, ORACLE = "#E69F00", "#0072B2", "#D55E00"
"""of Okabe and Ito, as in `tl.tracking.domain_plot`"""
MOST_CLASSES = 30
MOST_LETTERS = 24

Line = Mapping[str, Any]
Curve = tuple[list[int], list[float]]


def plot_adaptation(
    lines: Sequence[Line], accuracies: Mapping[str, Any] | None, path: Path
) -> None:
    """Write a PNG of what there is: curves over the steps, and a bar for each class.

    What goes by the target's labels has panels of its own, or is dashed, and is called oracle.

    Args:
        lines: of ``metrics.jsonl``.
        accuracies: ``per_class`` and the rest, as in ``domain_map.json``; None without labels.
    """
    curves = {key: _curve(lines, key) for key in _KEYS}
    drawn = [draw for draw, keys in _PANELS if any(curves[key][0] for key in keys)]
    rows = -(-len(drawn) // 2)
    per_class = _shown(accuracies["per_class"]) if accuracies else []
    high = 0.9 + 0.32 * len(per_class) if per_class else 0.0
    heights = [2.6] * rows + ([high] if per_class else [])
    if not heights:
        heights = [1.0]
    figure = Figure(figsize=(9, sum(heights)), dpi=150, layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    for i, draw in enumerate(drawn):
        axes = figure.add_subplot(grid[i // 2, i % 2])
        draw(axes, curves)
        axes.set_xlabel("step", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    if accuracies is not None and per_class:
        _bars(figure.add_subplot(grid[rows, :]), per_class, accuracies)
    elif not drawn:
        figure.text(0.5, 0.5, "the run has no record, and the target no labels", ha="center")
    save_png(figure, path)


def _curve(lines: Sequence[Line], key: str) -> Curve:
    """Steps and values where there is a number; a later line of a step counts."""
    found = {
        line["step"]: float(line[key])
        for line in lines
        if isinstance(line.get(key), int | float) and not isinstance(line[key], bool)
    }
    return list(found), list(found.values())


def _domain(axes: Axes, curves: Mapping[str, Curve]) -> None:
    axes.plot(*curves["train/domain_accuracy"], marker=".", markersize=3, color="black")
    axes.axhline(0.5, color="0.5", linestyle=":", linewidth=1.5, zorder=3)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title("the discriminator in training (dotted: chance)", fontsize=10)


def _im(axes: Axes, curves: Mapping[str, Curve]) -> None:
    axes.plot(*curves["target/im"], marker=".", color="black")
    axes.set_ylabel("target/im (nats)", fontsize=9)
    axes.set_title("without labels: information maximisation", fontsize=10)


def _snd(axes: Axes, curves: Mapping[str, Curve]) -> None:
    axes.plot(*curves["target/snd"], marker=".", color="black")
    axes.set_ylabel("target/snd (nats)", fontsize=9)
    axes.set_title("without labels: neighbourhood density", fontsize=10)


def _accuracy(axes: Axes, curves: Mapping[str, Curve]) -> None:
    if curves["val/accuracy"][0]:
        axes.plot(*curves["val/accuracy"], marker="o", markersize=3, color=AFTER, label="source")
    if curves["oracle/accuracy"][0]:
        axes.plot(
            *curves["oracle/accuracy"],
            marker="x",
            markersize=4,
            linestyle="--",
            color=ORACLE,
            label="target, by its labels (oracle)",
        )
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title("accuracy in validation", fontsize=10)
    axes.legend(fontsize=8)


_PANELS = (
    (_domain, ("train/domain_accuracy",)),
    (_im, ("target/im",)),
    (_snd, ("target/snd",)),
    (_accuracy, ("val/accuracy", "oracle/accuracy")),
)
_KEYS = [key for _, keys in _PANELS for key in keys]


def _shown(rows: Sequence[Line]) -> list[Line]:
    """The classes that have images; of many those that changed the most, in the same order."""
    there = [row for row in rows if row["images"]]
    by_change = sorted(there, key=lambda row: -abs(row["after"] - row["before"]))
    kept = {row["class"] for row in by_change[:MOST_CLASSES]}
    return [row for row in there if row["class"] in kept]


def _bars(axes: Axes, rows: Sequence[Line], accuracies: Mapping[str, Any]) -> None:
    places = range(len(rows))
    overall = accuracies["target_accuracy"]
    by = accuracies["before_classifies_by"]
    for key, move, colour, hatch, text in (
        ("before", -0.2, BEFORE, "///", f"before, by {by}"),
        ("after", 0.2, AFTER, "", "after"),
    ):
        axes.barh(
            [place + move for place in places],
            [row[key] for row in rows],
            height=0.38,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=f"{text}: {overall[key]:.1%} of all",
        )
    names = [f"{_short(row['class'])} ({row['images']:,})" for row in rows]
    axes.set_yticks(places, names, fontsize=9, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first one above
    axes.set_xlim(0, 1)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    many = sum(1 for row in accuracies["per_class"] if row["images"])
    which = f", the {len(rows)} of {many:,} that changed the most" if many > len(rows) else ""
    axes.set_title(f"accuracy on the target by class (oracle){which}", fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3, ncols=2)


def _short(name: str) -> str:
    name = printable(" ".join(name.split()))
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
