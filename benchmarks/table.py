"""The tables of benchmarks/speed.md, made from benchmarks/results.json.

    python benchmarks/table.py

writes them between the two markers there. `render` makes the text, which `compare.py` prints as
well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "benchmarks" / "speed.md", ROOT / "benchmarks" / "results.json"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
NOTHING = "Not measured yet: `python benchmarks/compare.py` does so."

UNITS = {
    "microseconds": "µs a step",
    "images_per_second": "images/s",
    "peak_mb": "MB",
    "gpu_peak_mb": "MB of GPU memory",
    "seconds_to_first_step": "s to the first step",
}


def main() -> None:
    """Bring the page up to date."""
    text = PAGE.read_text("utf-8")
    PAGE.write_text(with_table(text, render(read()), BEGIN, END), "utf-8")


def read(path: Path = RESULTS) -> dict[str, Any] | None:
    """What was measured; None if nothing was yet."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def with_table(text: str, table: str, begin: str, end: str) -> str:
    """``text`` with ``table`` in place of what is between the two markers.

    Raises:
        ValueError: there is not one pair of markers.
    """
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end or begin in after or end in after:
        raise ValueError(f"not one pair of {begin} and {end} in the text")
    return f"{before}{begin}\n{table}\n{end}{after}"


def render(results: dict[str, Any] | None) -> str:
    """All of it in Markdown."""
    if results is None:
        return NOTHING
    blocks = [_session(results), _targets(results["targets"])]
    parts = results["parts"]
    if commands := [name for name in ("head", "finetune") if _measured(parts, name)]:
        blocks += [_commands(parts[name]) for name in commands]
    if others := [
        name
        for name in ("limits", "overhead", "start", "memory", "scaling")
        if _measured(parts, name)
    ]:
        blocks.append(_others({name: parts[name] for name in others}))
    if notes := _notes(parts):
        blocks.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(blocks)


def _measured(parts: dict[str, Any], name: str) -> bool:
    return name in parts and "rows" in parts[name]


def _session(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version
    )
    quick = "**A quick run on made images: its figures mean nothing.** " if results["quick"] else ""
    where = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    bf16 = "" if machine["gpu"] or machine["bf16_in_silicon"] else ", without bf16 in silicon"
    rounds = {name: part.get("rounds", 0) for name, part in results["parts"].items()}
    most = max(rounds.values())
    fewer = [f"{name}: {number}" for name, number in rounds.items() if number < most]
    taken = _count(most, "round") + (f" ({', '.join(fewer)})" if fewer else "")
    return (
        f"{quick}{where}{bf16}, {machine['memory_gb']:.0f} GB; {versions}. Everything is measured "
        f"in turn, {taken}: median (lowest to highest)."
    )


def _targets(rows: Iterable[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        wanted = (
            f"at least {row['at_least']:g}"
            if row["at_least"] is not None
            else f"at most {row['at_most']:g}"
        )
        wanted += f" (aim {row['aim']:g})" if row["aim"] else ""
        verdict = {True: "reached", False: "not reached", None: row.get("why", "")}[row["reached"]]
        measured = _spread_of(row["measured"]) if row["measured"] else "-"
        lines.append([row["what"], wanted, measured, verdict])
    return markdown_table(["ratio", "wanted", "measured", ""], lines)


def _commands(part: dict[str, Any]) -> str:
    lines = []
    for name, row in part["rows"].items():
        accuracies = row.get("last_accuracy")
        lines.append(
            [
                name,
                _spread(row.get("wall_seconds")),
                _spread(row.get("seconds_to_first_step")),
                _spread(row.get("images_per_second")),
                f"{median(accuracies):.4f}" if accuracies else "-",
            ]
        )
    work = part["work"]
    what = "Head-only" if work["train"] == "head" else "Fine-tuning of all layers"
    title = (
        f"{what}, {work['model']}, {_count(work['epochs'], 'epoch')} of {work['train_images']} "
        f"images, batches of {work['batch_size']}; this project with {_got(part)}:"
    )
    header = ["", "whole command, s", "to the first step, s", "images/s in training", "accuracy"]
    return title + "\n\n" + markdown_table(header, lines)


def _got(part: dict[str, Any]) -> str:
    return next(row["got"][0] for row in part["rows"].values() if "got" in row)


def _others(parts: dict[str, dict[str, Any]]) -> str:
    lines = []
    for part_name, part in parts.items():
        for name, row in part["rows"].items():
            shown = UNITS
            if part_name == "start":
                shown = {"seconds_to_first_step": UNITS["seconds_to_first_step"]}
            elif "wall_seconds" in row:
                shown = {"images_per_second": UNITS["images_per_second"]}
            lines += [
                [f"{part_name}: {name}", f"{_spread(row[key])} {unit}"]
                for key, unit in shown.items()
                if key in row
            ]
        lines += [
            [f"{part_name}: {name}", _spread_of(measured)]
            for name, measured in part["ratios"].items()
            if " " in name  # the others are in the table of what is wanted
        ]
    return markdown_table(["", "measured"], lines)


def _notes(parts: dict[str, Any]) -> list[str]:
    notes = []
    for name, part in parts.items():
        if "error" in part:
            notes.append(f"{name}: failed: {part['error'].splitlines()[-1]}")
        notes += [f"{name}: {note}" for note in part.get("notes", ())]
    return list(dict.fromkeys(notes))


def _spread(values: Sequence[float] | None) -> str:
    if not values:
        return "-"
    return _spread_of({"median": median(values), "min": min(values), "max": max(values)})


def _spread_of(spread: dict[str, float]) -> str:
    middle, low, high = (_number(spread[key]) for key in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
