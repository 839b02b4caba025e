"""The table of benchmarks/strategies.md, made from benchmarks/strategies.json.

    python benchmarks/strategy_table.py

writes it between the two markers there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import table
from strategy_recipes import RECIPES, SETS

PAGE = table.ROOT / "benchmarks" / "strategies.md"
RESULTS = PAGE.with_suffix(".json")
NOTHING = "Not measured yet: `python benchmarks/strategies.py` does so, in some hours on two cores."
BEGIN, END = "<!-- strategies:begin -->", "<!-- strategies:end -->"


def main() -> None:
    """Bring the page up to date."""
    text = PAGE.read_text("utf-8")
    PAGE.write_text(table.with_table(text, render(read()), BEGIN, END), "utf-8")


def read(path: Path = RESULTS) -> dict[str, Any] | None:
    """What was measured; None if nothing was yet."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def render(results: dict[str, Any] | None) -> str:
    """The table in Markdown, in the order of the recipes; those that were not run are left out."""
    if results is None:
        return NOTHING
    runs = results["runs"]
    sets = [name for name in SETS if any(name in runs.get(recipe, {}) for recipe in RECIPES)]
    gpu = results["machine"]["gpu"]
    seconds, clock = ("seconds", "s") if gpu else ("cpu_seconds", "CPU s")
    header = ["", *(f"{name}: accuracy" for name in sets), *(f"{name}: {clock}" for name in sets)]
    header += ["trained parameters", "peak memory, MB"]
    memory = "gpu_peak_mb" if gpu else "peak_mb"
    lines = []
    for recipe in RECIPES:
        by_set = [list(runs.get(recipe, {}).get(name, {}).values()) for name in sets]
        every = [run for found in by_set for run in found]
        if every:
            lines.append(
                [
                    recipe,
                    *(_accuracy([run["accuracy"] for run in found]) for found in by_set),
                    *(_mean([run[seconds] for run in found], 0) for found in by_set),
                    f"{max(run['trained_parameters'] for run in every):,}",
                    _mean([run[memory] for run in every], 0),
                ]
            )
    return f"{_session(results)}\n\n{table.markdown_table(header, lines)}"


def _session(results: dict[str, Any]) -> str:
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    beside = f", {results['at_once']} runs side by side" if results["at_once"] > 1 else ""
    seeds = {len(s) for by_set in results["runs"].values() for s in by_set.values()}
    number = str(seeds.pop()) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return f"SqueezeNet 1.0, {number} seeds: mean (lowest to highest). {where}{beside}."


def _accuracy(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{mean(values):,.{digits}f}" if values else "-"


if __name__ == "__main__":
    main()
