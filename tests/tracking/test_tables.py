"""Tables that fit 80 columns with their numbers whole."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from tl.tracking.tables import format_value, key_values, table


def printed(renderable: Table, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]


def test_numbers_are_to_the_right_with_thousands_separators() -> None:
    rows = [("stem", 9536, True), ("layer4", 8393728, False), ("head", None, True)]
    lines = printed(table("Freeze plan", ["stage", "parameters", "frozen"], rows))
    ends = [
        line.index(text) + len(text)
        for line, text in zip(lines[-3:], ["9,536", "8,393,728", "-"], strict=True)
    ]
    assert len(set(ends)) == 1
    assert "yes" in lines[-3]


def test_at_80_columns_no_number_is_wrapped_or_cut_whatever_the_names() -> None:
    rows = [("x" * 200, 123456789, 0.123456, 98765.4321, "y" * 90)]
    lines = printed(table("", ["name", "parameters", "accuracy", "speed", "note"], rows))
    assert max(map(len, lines)) <= 80
    for number in ("123,456,789", "0.1235", "98,765.4"):
        assert any(number in line for line in lines)


def test_brackets_in_a_name_are_no_markup() -> None:
    assert any("[red]cat[/red]" in line for line in printed(key_values("", {"[red]cat[/red]": 1})))


def test_a_name_does_not_steer_the_terminal() -> None:
    name = "\x1b[2J\x07\nerror: \udcff"
    for shown in (table("", ["class"], [[name]]), key_values("", {name: name})):
        text = "\n".join(printed(shown))
        assert r"\x1b[2J\x07\nerror: \xff" in text
        assert "\x1b" not in text


def test_values_are_written_for_people() -> None:
    given = [None, True, False, 1234567, 0.25, 1e-5, 12345.678, "text"]
    assert list(map(format_value, given)) == [
        "-",
        "yes",
        "no",
        "1,234,567",
        "0.2500",
        "1.000e-05",
        "12,345.7",
        "text",
    ]
