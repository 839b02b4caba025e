"""Text in Markdown that stays text, whatever a class or a folder is called."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from tl.errors import printable


def plain(text: object) -> str:
    """As text in Markdown, HTML or a cell of a table: no markup, no line feed."""
    safe = html.escape(printable(str(text)), quote=False)
    # No links of GitHub's either: www.…, https:…, @name, :emoji:.
    return re.sub(r"([\\`*_{}\[\]()#!|~$:@]|(?<=www)\.)", r"\\\1", safe, flags=re.IGNORECASE)


def rows(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table; the cells are made `plain`."""
    made = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    made += ["| " + " | ".join(map(plain, line)) + " |" for line in lines]
    return "\n".join(made)
