"""The freeze plan: the stages from the images to the head, and what each phase does to them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from tl.report.svg import drawing, short, tag, text, tick_label

ROW, NAME, CELL, GAP, TOP = 42.0, 138.0, 150.0, 14.0, 52.0
MOST_ROWS = 24


@dataclass(frozen=True)
class _Row:
    """A stage, or several after one another that every phase treats alike."""

    name: str
    parameters: int
    cells: tuple[tuple[float, str], ...]
    """of each phase: the share that trains, and at which rates"""


def plan_drawing(phases: list[dict[str, Any]], key: str) -> Markup:
    """The plan of phases of ``report/run.json``, which have the same stages."""
    rows = _rows(phases)
    width = NAME + len(phases) * (CELL + GAP)
    height = TOP + len(rows) * ROW + 10
    hatch = tag(
        "pattern",
        tag("path", d="M0 8L8 0M-2 2L2 -2M6 10L10 6", class_="hatch"),
        id=f"{key}-hatch", width=8, height=8, patternUnits="userSpaceOnUse",
    )  # fmt: skip
    parts = [tag("defs", hatch)]
    for i, phase in enumerate(phases):
        x = NAME + i * (CELL + GAP)
        parts.append(text(x, 18, short(phase["name"], 19), "column"))
        parts.append(text(x, 36, short(phase["train"], 22), "tick"))
    parts.append(text(0, 18, "stage", "column"))
    parts.append(text(0, 36, "parameters", "tick"))
    words = []
    for i, row in enumerate(rows):
        y = TOP + i * ROW
        parts.append(text(0, y + 12, short(row.name, 18), "stage"))
        parts.append(text(0, y + 27, f"{row.parameters:,}", "tick"))
        for j, (share, rates) in enumerate(row.cells):
            x = NAME + j * (CELL + GAP)
            parts += _cell(x, y, share, rates, bool(row.parameters), key)
        treated = (_treated(share, rates, bool(row.parameters)) for share, rates in row.cells)
        words.append(f"{row.name}: {', '.join(treated)}")
    return drawing(
        width, height, "Freeze plan, from the images (top) to the head (bottom)",
        "; ".join(words), parts, key, class_=f"plan plan-{min(len(phases), 4)}",
    )  # fmt: skip


def _cell(x: float, y: float, share: float, rates: str, has_any: bool, key: str) -> list[Markup]:
    if not has_any:
        return [text(x, y + 20, "no parameters", "tick")]
    parts = [
        tag(
            "rect",
            x=x,
            y=y + 2,
            width=CELL,
            height=11.0,
            class_="frozen",
            fill=f"url(#{key}-hatch)",
        )
    ]
    if share > 0:
        # A sliver of a share is to be seen as well.
        wide = min(CELL, max(4.0, CELL * share))
        parts.append(tag("rect", x=x, y=y + 2, width=wide, height=11.0, class_="trained"))
    label = "tick strong" if share else "tick"
    parts.append(text(x, y + 27, _treated(share, rates, has_any), label))
    return parts


def _treated(share: float, rates: str, has_any: bool) -> str:
    if not has_any:
        return "no parameters"
    if not share:
        return "frozen"
    what = "trains" if share == 1 else f"{share:.0%} trains" if share >= 0.01 else "<1% trains"
    return f"{what}, {' to '.join(_rate(rate) for rate in rates.split(' to '))}"


def _rate(text: str) -> str:
    try:
        return tick_label(float(text))
    except ValueError:
        return text


def _rows(phases: list[dict[str, Any]]) -> list[_Row]:
    by_stage = list(zip(*(phase["stages"] for phase in phases), strict=True))
    rows = []
    for stages in by_stage:
        most = max(int(stage["parameters"]) for stage in stages)
        cells = tuple(
            (stage["trainable"] / stage["parameters"] if stage["parameters"] else 0.0, stage["lr"])
            for stage in stages
        )
        rows.append(_Row(str(stages[0]["stage"]), most, cells))
    if len(rows) <= MOST_ROWS:
        return rows
    grouped = []
    for cells, group in groupby(rows, key=lambda row: row.cells):
        same = list(group)
        names = [row.name for row in same]
        name = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        grouped.append(_Row(name, sum(row.parameters for row in same), cells))
    return grouped
