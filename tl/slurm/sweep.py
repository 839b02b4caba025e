"""A sweep: one run for each combination of values, and a table of what came of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tl.errors import UserError

SWEEP = "--sweep"


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of all runs, and what is swept: ``key=value,value`` after ``--sweep``."""
    if SWEEP not in words:
        return list(words), []
    at = list(words).index(SWEEP)
    return list(words[:at]), list(words[at + 1 :])


def combinations(swept: Sequence[str]) -> list[list[str]]:
    """``["seed=0,1", "lr=1e-3,1e-2"]`` to four lists of overrides; the last key varies fastest.

    A comma within brackets belongs to its value: ``phases=[…],[…]`` is two.

    Raises:
        UserError: a word is no ``key=value,value``, or a key is there twice.
    """
    axes: dict[str, list[str]] = {}
    for word in swept:
        key, equals, values = word.partition("=")
        if not equals or not key or not all(found := _values(values)):
            raise UserError(f"{SWEEP}: {word!r} is no key=value,value as in optimizer.lr=1e-3,1e-2")
        if key in axes:
            raise UserError(f"{SWEEP}: {key} is there twice; give all its values at once")
        axes[key] = [f"{key}={value}" for value in found]
    if not axes:
        raise UserError(f"{SWEEP} takes key=value,value as in optimizer.lr=1e-3,1e-2 seed=0,1,2")
    return [list(chosen) for chosen in itertools.product(*axes.values())]


def _values(text: str) -> list[str]:
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def of_task(words: Sequence[str], task: int) -> list[str]:
    """The arguments of task number ``task`` of an array, from those of the whole sweep.

    Raises:
        UserError: the sweep has no such task.
    """
    common, swept = split(words)
    runs = combinations(swept)
    if not 0 <= task < len(runs):
        raise UserError(
            f"the sweep has {len(runs)} runs, and this is task {task}: submit it with "
            f"sbatch --array=0-{len(runs) - 1}"
        )
    return [*common, *runs[task]]


def folder_of(sweep_dir: str | Path, task: int) -> Path:
    """The folder of one run of a sweep."""
    return Path(sweep_dir, f"{task:03}")


def table(swept: Sequence[str], sweep_dir: Path) -> str:
    """What came of each run so far, in Markdown: the best first, then those without a result."""
    keys = [word.partition("=")[0] for word in swept]
    rows, metric = [], ""
    for task, chosen in enumerate(combinations(swept)):
        folder = folder_of(sweep_dir, task)
        summary, status = _read(folder / "summary.json"), _read(folder / "status.json")
        values = [word.partition("=")[2] for word in chosen]
        metric = summary.get("best_metric", metric)
        reached = summary.get(metric) if summary else None
        state = status.get("state", "waiting")
        step = str(status.get("step", ""))
        rows.append((reached, [*values, _number(reached), state, step, str(folder)]))
    header = [*keys, metric or "result", "state", "step", "run"]
    smaller = metric in ("val/loss", "target/entropy")
    rows.sort(key=lambda row: (row[0] is None, (row[0] or 0.0) * (1 if smaller else -1)))
    lines = [header, ["---"] * len(header), *(row for _, row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
