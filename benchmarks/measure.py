"""Commands by the clock, in turn, and ratios with their spread."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Values = dict[str, Any]
"""What one contender came to in one round, such as ``wall_seconds``."""


class CommandFailedError(Exception):
    """A command that is measured has failed; the message has the end of what it said."""


def run(
    command: Sequence[str], cwd: str | Path | None = None, **environment: str
) -> tuple[float, list[str]]:
    """Run a command to its end: its wall seconds, and the lines that it printed.

    Raises:
        CommandFailedError: its exit code is not 0.
    """
    started, clock = time.time(), time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**_environment(), "BENCHMARK_STARTED": repr(started), **environment},
    )
    seconds = time.perf_counter() - clock
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise CommandFailedError(f"{' '.join(command)}\nended with {done.returncode}:\n{said}")
    return seconds, done.stdout.splitlines()


def last_json(lines: Sequence[str]) -> Values:
    """The object that a worker or a peer prints at its end."""
    return json.loads(next(line for line in reversed(lines) if line.startswith("{")))


def _environment() -> dict[str, str]:
    """That of a user's shell, with this checkout before what may be installed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TL_", "ACCELERATE_", "OMP_"))}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": paths, "WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1"}


def in_turn(
    contenders: Mapping[str, Callable[[], Values]], rounds: int
) -> dict[str, dict[str, list[Any]]]:
    """Measure all contenders once, then all of them again: A B C A B C ...

    What else the machine does in a while meets all alike. Returns for each contender and value the
    list over the rounds.
    """
    results: dict[str, dict[str, list[Any]]] = {name: {} for name in contenders}
    for i in range(rounds):
        for name, measure in contenders.items():
            values = measure()
            shown = ", ".join(f"{k} {_short(v)}" for k, v in values.items())
            print(f"  round {i + 1} of {rounds}, {name}: {shown}", file=sys.stderr, flush=True)
            for key, value in values.items():
                results[name].setdefault(key, []).append(value)
    return results


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, min and max."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The spread of ``over / under``, each round's by itself: its two had the same machine."""
    return spread([a / b for a, b in zip(over, under, strict=True)])
