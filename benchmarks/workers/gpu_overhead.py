"""Time of a step with a network of almost no arithmetic: the run's loop against a bare one.

python benchmarks/workers/gpu_overhead.py "" DATA FOLDER tiny|whole
"""

from __future__ import annotations

import importlib.util
import time
from functools import partial
from typing import Any

import contenders
from gpu_part import Told, cuda, guarded


def main() -> None:
    told = Told.by_command_line()
    steps, warm_up = (120, 20) if told.tiny else (1500, 300)
    jsonl = "tracking.trackers=[jsonl]"
    toy = "21 layers"
    bare = ("bare_loop", toy, steps, warm_up, "gpu" if cuda() else "alone")
    for number in range(2):
        ways: dict[str, Any] = {
            "bare": partial(contenders.worker, *bare),
            "own": partial(own, told, toy, steps, warm_up, jsonl, "mixed_precision=no"),
        }
        if number == 0:
            half = (jsonl, "mixed_precision=bf16")
            ways["own, bf16"] = partial(own, told, toy, steps, warm_up, *half)
        elif importlib.util.find_spec("wandb"):  # the last: its service may not end by itself
            everything = (toy, steps, warm_up, "mixed_precision=no")
            ways["own, all trackers"] = partial(own, told, *everything)
        for way, measure in ways.items():
            guarded(f"{toy}, {way}, round {number + 1}", measure)


def own(told: Told, toy: str, steps: int, warm_up: int, *more: str) -> dict[str, Any]:
    folder = told.folder / f"overhead-{time.monotonic_ns()}"
    return contenders.worker("own_loop", toy, steps, warm_up, folder, *more)


if __name__ == "__main__":
    main()
