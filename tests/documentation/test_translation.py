"""README.ko.md says what README.md says: whatever a translation leaves as it is, is the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from blocks import ROOT, TRANSLATION, blocks_of

README = ROOT / "README.md"


def tables(text: str) -> list[list[str]]:
    """Of each row of each table the code in its cells, and how many cells there are."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[str(row.count(" | ")), *sorted(re.findall(r"`[^`]+`", row))] for row in rows]


def sections(text: str) -> list[list[str]]:
    """The text under each heading."""
    parts = re.split(
        r"^#+ .*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE
    )
    return [part.split("\n") for part in parts]


def of_sections(pattern: str) -> Callable[[str], list[Counter[str]]]:
    """How often what matches is in each section, in whatever order a sentence has it."""
    return lambda text: [Counter(re.findall(pattern, "\n".join(s))) for s in sections(text)]


ALIKE: dict[str, Callable[[str], Any]] = {
    "levels of headings": lambda text: re.findall(r"^#+(?= )", text, re.MULTILINE),
    "rows of tables and the code in them": tables,
    "links": of_sections(r"\]\(([^)#\s]+)"),
    "anchors": of_sections(r"\]\([^)\s]*#([\w-]+)\)"),
    "code": of_sections(r"`[^`\n]+`"),
    "numbers": of_sections(r"(?<![\w.])\d[\d.,]*\d"),  # of one digit may be a word
    "items": of_sections(r"(?m)^- "),
}


@pytest.mark.parametrize("what", ALIKE)
def test_the_translation_has_the_same(what: str) -> None:
    texts = [page.read_text("utf-8") for page in (README, TRANSLATION)]
    own, other = "(README.ko.md)", "(README.md)"
    original, translated = (ALIKE[what](text.replace(other, own)) for text in texts)
    assert translated == original


def test_the_translations_blocks_are_the_originals() -> None:
    original, translated = (
        [(block.language, block.text) for block in blocks_of(page)]
        for page in (README, TRANSLATION)
    )
    assert translated == original


def test_each_links_the_other_at_its_top() -> None:
    for page, other in ((README, TRANSLATION), (TRANSLATION, README)):
        top = page.read_text("utf-8").partition("\n## ")[0]
        assert f"]({other.name})" in top
