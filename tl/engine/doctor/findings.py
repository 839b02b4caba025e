"""What a check found: fine, worth knowing, or a problem; and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["ok", "note", "problem"]

GIB = 2**30


class Finding(NamedTuple):
    """A line of the report. Plain values, so that it can be sent between processes."""

    kind: Kind
    what: str
    """what was looked at, in a word or two"""
    text: str
    mend: str = ""
    """what to do, where there is something"""


def ok(what: str, text: str) -> Finding:
    """All is well."""
    return Finding("ok", what, text)


def note(what: str, text: str, mend: str = "") -> Finding:
    """A run can go on with it."""
    return Finding("note", what, text, mend)


def problem(what: str, text: str, mend: str) -> Finding:
    """A run would fail, or not be what was asked for."""
    return Finding("problem", what, text, mend)


def gib(size: float) -> str:
    """A number of bytes, as ``12.3 GiB``."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.0f} MiB"
