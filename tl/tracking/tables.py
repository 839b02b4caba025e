"""Tables for people: numbers to the right with thousands separators, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tl.errors import printable


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table of plain values.

    A column in which every value is a number (or None) is aligned to the right and is never
    wrapped or cut; where the screen is too narrow, columns of text are folded instead.
    """
    rows = [list(row) for row in rows]
    result = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        values = [row[i] for row in rows]
        cells = [format_value(value) for value in values]
        if values and all(_is_number(value) for value in values):
            width = max(map(len, cells))
            result.add_column(name, justify="right", no_wrap=True, min_width=max(width, len(name)))
        else:
            result.add_column(name, overflow="fold")
    for row in rows:
        # Text, not str: brackets in a name are no markup.
        result.add_row(*(Text(format_value(value)) for value in row))
    return result


def key_values(title: str, values: Mapping[str, Any]) -> Table:
    """A table of two columns, without a header."""
    result = Table(title=title or None, title_justify="left", box=None, show_header=False)
    result.add_column("key", no_wrap=True)
    result.add_column("value", overflow="fold")
    for key, value in values.items():
        result.add_row(Text(printable(key)), Text(format_value(value)))
    return result


def format_value(value: Any) -> str:
    """``1234567`` as ``1,234,567``; a float with four digits, zeros too; ``-``, yes and no."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:#.4g}"
    return printable(str(value))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
