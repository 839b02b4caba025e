"""What the parts of `benchmarks/gpu.py` have in common: their arguments, results, and runs."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl.arguments import load
from tl.engine import run, runtime
from tl.engine.runtime import Runtime


@dataclass(frozen=True)
class Told:
    """The command line: WHAT DATA FOLDER tiny|whole."""

    what: str
    data: Path
    folder: Path
    tiny: bool

    @staticmethod
    def by_command_line() -> Told:
        what, data, folder, size = sys.argv[1:]
        return Told(what, Path(data), Path(folder), size == "tiny")

    def arguments(self, name: str, *more: str) -> list[str]:
        """Of a run in the folder ``name``, on the made images, with random weights."""
        return [
            f"data.root={self.data}",
            "model.weights=null",
            "tracking.trackers=[jsonl]",
            f"cache.folder={self.folder / 'cache'}",
            f"run_dir={self.folder / name}",
            *(["data.image_size=64"] if self.tiny else []),
            *more,
        ]


def result(name: str, **values: Any) -> None:
    """Tell the script."""
    print("RESULT " + json.dumps({"name": name, **values}, default=str), flush=True)


def guarded(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do a piece of work and tell what came of it; if it fails, why. The others go on."""
    began = time.perf_counter()
    try:
        values = work()
    except Exception as error:
        values = {
            "right": False,
            "error": f"{type(error).__name__}: {error}"[:1000],
            "traceback": traceback.format_exc(),
        }
    result(name, **values, seconds=round(time.perf_counter() - began, 1))
    return values


def a_run(
    told: Told, name: str, *more: str, resume: str = "never", shared: Runtime | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run to its end: its summary, and the lines of its record."""
    arguments = told.arguments(name, *more)
    if shared is None:
        runtime.stop()
    try:
        summary = run.run(load(None, arguments, environ={}), resume=resume, shared=shared)
    finally:
        if shared is None:
            runtime.stop()
    return summary, record(told, name)


def record(told: Told, name: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    text = (told.folder / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(lines: list[dict[str, Any]]) -> list[float]:
    """Of each line of training."""
    return [line["train/loss"] for line in lines if "train/loss" in line]


def difference(one: list[float], other: list[float]) -> float:
    """The largest relative difference; a None (not finite) or another length is an error.

    The loss of a step that is left out, as fp16's scaler does, is 0.
    """
    assert len(one) == len(other) > 0, f"{len(one)} and {len(other)} lines"
    return max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(one, other, strict=True))


def cuda() -> bool:
    return torch.cuda.is_available()
