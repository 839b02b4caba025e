"""SVG as text. Colours and dashes are the page's classes, so that a drawing follows its theme.

Whatever a user has named goes through `tag` and `text`, which escape it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup, escape

from tl.errors import printable

LONGEST = 80
"""letters of a name that are shown"""


def short(name: object, most: int = LONGEST) -> str:
    """A name as a page shows it: visible letters alone, and of a long one its two ends."""
    text = printable(str(name))
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element. ``class_`` is class, ``font_size`` is font-size; numbers have two decimals."""
    words = [Markup("<"), name]
    for key, value in attributes.items():
        if value is not None:
            key = key.rstrip("_") if key.endswith("_") else key.replace("_", "-")
            words += [" ", key, Markup('="'), escape(_value(value)), Markup('"')]
    inside = Markup("").join(escape(part) for part in content)
    opening = Markup("").join(escape(word) for word in words)
    if not content:
        return opening + Markup("/>")
    return opening + Markup(">") + inside + Markup(f"</{name}>")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def text(x: float, y: float, words: object, class_: str = "", **attributes: object) -> Markup:
    """Words at a place."""
    return tag("text", short(words), x=float(x), y=float(y), class_=class_ or None, **attributes)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    steps = " ".join(f"{'ML'[i > 0]}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return tag("path", d=steps, class_=class_)


def drawing(
    width: float,
    height: float,
    name: str,
    about: str,
    parts: Iterable[Markup],
    key: str,
    class_: str,
) -> Markup:
    """A whole drawing, with what it is called and what is to be seen, for those who hear it.

    Args:
        key: of this drawing alone, on the page.
    """
    return tag(
        "svg",
        tag("title", short(name, 200), id=f"{key}-title"),
        tag("desc", short(about, 600), id=f"{key}-desc"),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        class_=class_,
        aria_labelledby=f"{key}-title",
        aria_describedby=f"{key}-desc",
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most so many and a few."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_label(value: float) -> str:
    """``10k``, ``0.25``, ``1e-5``."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    if size and size < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"
