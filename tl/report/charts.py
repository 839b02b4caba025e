"""Curves over the steps of a run, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tl.report.numbers import Calibration, thinned
from tl.report.seen import BINS
from tl.report.svg import drawing, path, tag, text, tick_label, ticks

WIDTH, HEIGHT = 560, 310
RIGHT, TOP, BOTTOM = 14, 30, 46
WIDEST_DIGIT = 12.7
"""of the 20 px that a narrow screen shows labels with; other signs are narrower"""
MOST_POINTS, MOST_MARKS = 240, 60
STYLES = 8
"""kinds of lines, each of another colour and dash; see style.css"""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A curve."""

    name: str
    points: Points
    style: int
    marked: bool = False
    """with a dot at each point, which tells its number"""


@dataclass(frozen=True)
class Chart:
    """A drawing with its legend, for the template."""

    title: str
    note: str
    svg: Markup
    legend: list[tuple[Markup, str]]


def chart(
    key: str,
    title: str,
    series: Sequence[Series],
    phases: Sequence[tuple[str, float]] = (),
    note: str = "",
    unit: str = "",
    from_zero: bool = False,
    best: float | None = None,
) -> Chart | None:
    """Curves over steps; None if there is no point.

    Args:
        key: of this chart alone, on the page.
        phases: names, and the step that each begins after.
        from_zero: whether the axis begins at 0.
        best: the step of the best evaluation, to be marked.
    """
    series = [one for one in series if one.points]
    if not series:
        return None
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (low if from_zero else low - room), high + room
    if min(ys) >= 0:
        low = max(0.0, low)
    last = max(max(xs), 1.0)
    left = 16 + WIDEST_DIGIT * max(len(tick_label(value)) for value in ticks(low, high, 5))

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (WIDTH - left - RIGHT) * x / last
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))

    parts = _axes(low, high, last, place)
    parts += _phases(phases, last, place, high, low)
    if best is not None:
        x, top = place(best, high)
        parts.append(path([(x, top), (x, place(best, low)[1])], "best"))
        anchor = "end" if x > WIDTH / 2 else "start"
        parts.append(
            text(x + (-5 if anchor == "end" else 5), HEIGHT - BOTTOM - 7, "best", "best-label",
                 text_anchor=anchor)
        )  # fmt: skip
    for one in series:
        dot = f"dot s{one.style % STYLES}"
        drawn = [place(x, y) for x, y in thinned(one.points, MOST_POINTS)]
        parts.append(path(drawn, f"line s{one.style % STYLES}"))
        if one.marked or len(one.points) == 1:
            for x, y in one.points[:: -(-len(one.points) // MOST_MARKS)]:
                across, down = place(x, y)
                says = tag("title", f"{one.name}, step {x:,.0f}: {y:.4g}{unit}")
                parts.append(
                    tag("circle", says, cx=across, cy=down, r=3.5, class_=dot)
                )  # fmt: skip
    about = "; ".join(_in_words(one, unit) for one in series)
    return Chart(
        title=title,
        note=note,
        svg=drawing(WIDTH, HEIGHT, title, about, parts, key, class_="chart"),
        legend=[(sample(one.style, one.marked), one.name) for one in series],
    )


def sample(style: int, marked: bool = False) -> Markup:
    """A short piece of a line, for a legend."""
    parts = [path([(0, 7), (34, 7)], f"line s{style % STYLES}")]
    if marked:
        parts.append(tag("circle", cx=17.0, cy=7.0, r=3.5, class_=f"dot s{style % STYLES}"))
    return tag("svg", *parts, viewBox="0 0 34 14", class_="sample", aria_hidden="true")


def _axes(low: float, high: float, last: float, place) -> list[Markup]:  # type: ignore[no-untyped-def]
    parts = []
    for value in ticks(low, high, 5):
        (left, y), (right, _) = place(0, value), place(last, value)
        parts.append(path([(left, y), (right, y)], "grid"))
        parts.append(text(left - 9, y + 4.5, tick_label(value), "tick", text_anchor="end"))
    for value in ticks(0, last, 5):
        x, y = place(value, low)
        parts.append(path([(x, y), (x, y + 5)], "grid"))
        parts.append(text(x, y + 21, tick_label(value), "tick", text_anchor="middle"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 6, "step", "tick", text_anchor="end"))
    return parts


def _phases(phases: Sequence[tuple[str, float]], last: float, place, high, low) -> list[Markup]:  # type: ignore[no-untyped-def]
    parts: list[Markup] = []
    starts = [(name, step) for name, step in phases if step < last]
    if len(starts) < 2:
        return parts
    for i, (name, step) in enumerate(starts):
        x, top = place(step, high)
        end = place(starts[i + 1][1] if i + 1 < len(starts) else last, high)[0]
        bottom = place(step, low)[1]
        if i % 2:
            parts.append(
                tag("rect", x=x, y=top, width=max(0.0, end - x), height=bottom - top, class_="band")
            )
        parts.append(path([(x, top - 6), (x, bottom)], "phase"))
        letters = int((end - x) / 9)
        if letters >= 3:
            label = name if len(name) <= letters else f"{name[: letters - 1]}…"
            parts.append(text(x + 5, top - 9, label, "phase-label"))
    return parts


def _in_words(one: Series, unit: str) -> str:
    (x0, y0), (x1, y1) = one.points[0], one.points[-1]
    values = [y for _, y in one.points]
    return (
        f"{one.name}: {y0:.4g}{unit} at step {x0:,.0f}, {y1:.4g}{unit} at step {x1:,.0f}, "
        f"between {min(values):.4g} and {max(values):.4g}"
    )


def reliability(found: Calibration, key: str) -> Markup:
    """Accuracy by confidence, with the diagonal where the two are equal, and how many images."""
    side, left, top = 300.0, 58.0, 12.0
    below = 64.0
    most = max(count for count, _, _ in found.bins)
    n = sum(count for count, _, _ in found.bins)
    wide = side / BINS
    parts: list[Markup] = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        y = top + side * (1 - value)
        parts.append(path([(left, y), (left + side, y)], "grid"))
        parts.append(text(left - 9, y + 4.5, f"{value:g}", "tick", text_anchor="end"))
        x = left + side * value
        parts.append(text(x, top + side + 20, f"{value:g}", "tick", text_anchor="middle"))
    for count, confidence, accuracy in found.bins:
        # The bin is (m/BINS, (m+1)/BINS], and rounding must not move its mean out of it.
        place = min(BINS - 1, max(0, -int(-confidence * BINS // 1) - 1))
        x = left + place * wide
        y = top + side * (1 - accuracy)
        says = tag(
            "title",
            f"{count:,} images of confidence {confidence:.3f}: {accuracy:.3f} of them are right",
        )
        parts.append(
            tag("rect", says, x=x + 1, y=y, width=wide - 2, height=side * accuracy, class_="bar")
        )
        mean = top + side * (1 - confidence)
        parts.append(path([(x, mean), (x + wide, mean)], "mean"))
        high = max(1.0, (below - 24) * count / most)
        base = top + side + 32 + below - 24
        parts.append(
            tag("rect", x=x + 1, y=base - high, width=wide - 2, height=high, class_="count")
        )
    parts.append(path([(left, top + side), (left + side, top)], "ideal"))
    foot = top + side + 32 + below - 24
    parts.append(text(left + side, foot + 18, "confidence", "tick", text_anchor="end"))
    parts.append(text(left, foot + 18, f"share of the {n:,} images", "tick"))
    about = "; ".join(
        f"{count:,} images of confidence {confidence:.2f}, {accuracy:.2f} right"
        for count, confidence, accuracy in found.bins
    )
    return drawing(
        left + side + 12,
        foot + 26,
        "Accuracy by confidence",
        about,
        parts,
        key,
        class_="reliability",
    )
