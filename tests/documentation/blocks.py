"""The commands that the documentation shows: which they are, and where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRANSLATION = ROOT / "README.ko.md"  # its blocks are those of README.md: test_translation.py
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if path != TRANSLATION
)
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
# What begins a command, wherever it stands.
COMMAND = re.compile(
    r"^(?:\w+=\S+ )*(?:export |\$ )?"
    r"(?:tl|accelerate|torchrun|python3?|pip|sbatch|srun|squeue|scancel|wandb|ruff|mypy|git|cd) \S"
)


def name_of(path: Path) -> str:
    """For the names of tests, and messages."""
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """Lines of code in a file."""

    language: str
    """what stands behind the three marks; "" without them, of indented lines too"""
    line: int
    """of the first line of code, from 1"""
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    """All blocks of code of a page in Markdown, fenced (in a list, too) and indented."""
    lines = page.read_text("utf-8").splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        if fence := re.match(r"^( *)(```+)(\w*)\s*$", line):
            indent, marks, language = fence.groups()
            end = number + 1
            while lines[end].strip() != marks:
                end += 1
            code = [inner.removeprefix(indent) for inner in lines[number + 1 : end]]
            yield Block(language, number + 2, "\n".join(code) + "\n")
            number = end + 1
        elif re.match(r"^( {4,}|\t)\S", line):
            yield Block("", number + 1, line.strip() + "\n")
            number += 1
        else:
            number += 1


def header_block(config: Path) -> Block:
    """The command in the comment that a config begins with; it goes on over lines with a \\."""
    lines = config.read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(r"^# {5}\S", line))
    end = start + 1
    while lines[end - 1].endswith("\\"):
        end += 1
    return Block("bash", start + 1, "\n".join(line[6:] for line in lines[start:end]) + "\n")
