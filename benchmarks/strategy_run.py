"""One run of `strategies.py`: trained by a recipe, tested on the images that are left."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategy_recipes import COMMON, RECIPES, SETS

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Job:
    """What to train, on what."""

    recipe: str
    set_name: str
    seed: int
    folder: Path
    """has train/ and val/"""
    weights: Path
    made: Path
    """where the run's folder goes"""
    more: Sequence[str]
    """key=value for the end of the command; how images are loaded, in the test as well"""

    def __str__(self) -> str:
        return f"{self.recipe}, {self.set_name}, seed {self.seed}"


def carry_out(job: Job) -> dict[str, Any]:
    """Train, test and measure in this process; what is printed goes to a file beside the run.

    Raises:
        RuntimeError: a command has failed; the message has the end of what it said.
    """
    from tl.command import let_idle_threads_sleep

    let_idle_threads_sleep()  # as the commands do, before torch is imported
    import torch

    from launch import evaluate, interpolate, train

    recipe = RECIPES[job.recipe]
    name = "".join(c if c.isalnum() else "-" for c in job.recipe)
    run_dir = job.made / "runs" / f"{name}-{job.set_name}-{job.seed}"
    run_dir.parent.mkdir(exist_ok=True)
    log = run_dir.with_name(run_dir.name + ".log")
    with log.open("w") as file:
        sys.stdout.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    keys = {
        **COMMON,
        "model.weights": job.weights,
        **SETS[job.set_name].keys,
        **recipe.keys,
        "data.root": job.folder,
        "seed": job.seed,
        "run_dir": run_dir,
        "cache.folder": f"{run_dir}-cache",  # each pays for its features
    }
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = _cpu_seconds()
    _command(train.main, [f"{key}={value}" for key, value in keys.items()] + list(job.more), log)
    cpu_seconds = _cpu_seconds() - before
    summary = json.loads((run_dir / "summary.json").read_text())
    loading = [word for word in job.more if word.startswith("data.workers=")]
    memory = _peak_memory(torch)
    if recipe.interpolate:
        places = {"run": run_dir, "val": job.folder / "val"}
        words = [word.format(**places) for word in recipe.interpolate.split()]
        _command(interpolate.main, [*words, *loading], log)
    test = [str(run_dir / recipe.leaves), str(job.folder / "val"), "--output", f"{run_dir}/test"]
    _command(evaluate.main, [*test, *loading], log)
    tested = json.loads((run_dir / "test" / "evaluation.json").read_text())
    shutil.rmtree(run_dir / "checkpoints")
    return {
        "accuracy": tested["accuracy"],
        "images": tested["images"],
        "seconds": summary["wall_seconds"],
        "cpu_seconds": cpu_seconds,
        "steps": summary["steps"],
        "trained_parameters": summary["trainable_parameters"],
        **memory,
    }


def _command(main: Callable[[Sequence[str]], int], words: list[str], log: Path) -> None:
    from tl.engine import runtime

    code = main(words)
    runtime.stop()  # the next one starts anew in this process
    if code:
        said = log.read_text()[-2000:]
        raise RuntimeError(f"{main.__module__} {' '.join(words)} ended with {code}:\n{said}")


def _cpu_seconds() -> float:
    """Of all cores, its loaders included; unlike the wall's it says little about the neighbours."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_memory(torch: Any) -> dict[str, float]:
    """The highest resident set of this process in MB, or what tensors took on its GPU."""
    if torch.cuda.is_available():
        return {"gpu_peak_mb": torch.cuda.max_memory_allocated() / 2**20}
    import resource

    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
