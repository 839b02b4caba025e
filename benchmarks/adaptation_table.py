"""The tables of benchmarks/adaptation.md, made from benchmarks/adaptation.json.

    python benchmarks/adaptation_table.py

writes them between the two markers there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import table
from adaptation_recipes import DIRECTIONS, RECIPES

PAGE = table.ROOT / "benchmarks" / "adaptation.md"
RESULTS = PAGE.with_suffix(".json")
NOTHING = "Not measured yet: `python benchmarks/adaptation.py` does so."
BEGIN, END = "<!-- adaptation:begin -->", "<!-- adaptation:end -->"

Evaluations = Sequence[dict[str, float]]

# Which evaluation of a run counts: by what looks at no label of the target, and by what does.
RULES: dict[str, Callable[[Evaluations], dict[str, float] | None]] = {
    "last step": lambda found: found[-1],
    "best source validation": lambda found: _highest(found, "val/accuracy"),
    "best IM": lambda found: _highest(found, "target/im"),
    "best SND": lambda found: _highest(found, "target/snd"),
    "oracle": lambda found: _highest(found, "oracle/accuracy"),
}


def main() -> None:
    """Bring the page up to date."""
    text = PAGE.read_text("utf-8")
    PAGE.write_text(table.with_table(text, render(read()), BEGIN, END), "utf-8")


def read(path: Path = RESULTS) -> dict[str, Any] | None:
    """What was measured; None if nothing was yet."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def render(results: dict[str, Any] | None) -> str:
    """A table for each direction in Markdown; recipes that were not run are left out."""
    if results is None:
        return NOTHING
    blocks = [_session(results)]
    for direction in DIRECTIONS:
        lines = []
        for recipe in RECIPES:
            runs = results["runs"].get(recipe, {}).get(direction, {}).values()
            if runs:
                chosen = [[rule(run["evaluations"]) for run in runs] for rule in RULES.values()]
                lines.append([recipe, *(_accuracy(found) for found in chosen)])
        if lines:
            blocks.append(table.markdown_table([direction, *RULES], lines))
    return "\n\n".join(blocks)


def _session(results: dict[str, Any]) -> str:
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    seeds = {len(s) for by_way in results["runs"].values() for s in by_way.values() if s}
    number = str(seeds.pop()) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    every = [
        run for by_way in results["runs"].values() for s in by_way.values() for run in s.values()
    ]
    seconds = median(run["training_seconds"] for run in every)
    return (
        f"Accuracy on the target in percent, seeds: {number}; mean (lowest to highest). "
        f"{len(every)} runs, whose training took {seconds:.0f} s (median) on {where}."
    )


def _highest(found: Evaluations, key: str) -> dict[str, float] | None:
    """The first of those with the highest value; None if it was not measured: without a source."""
    measured = [evaluation for evaluation in found if key in evaluation]
    return max(measured, key=lambda evaluation: evaluation[key], default=None)


def _accuracy(found: Sequence[dict[str, float] | None]) -> str:
    values = [100 * evaluation["oracle/accuracy"] for evaluation in found if evaluation]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
