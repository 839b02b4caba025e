"""One run of `adaptation.py`: what a recipe does in a direction, by its evaluations."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptation_recipes import COMMON, DIRECTIONS, RECIPES, WITHOUT_SOURCE, Keys
from side_by_side import output_to

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

KEPT = ("step", "val/accuracy", "target/im", "target/snd", "target/entropy", "oracle/accuracy")


@dataclass(frozen=True)
class Job:
    """What to train, from where to where."""

    recipe: str
    direction: str
    seed: int
    data: Path
    weights: Path
    made: Path
    """where the run's folder goes, and the features that all runs share"""
    more: Sequence[str]
    """key=value for the end of the command"""

    def __str__(self) -> str:
        return f"{self.recipe}, {self.direction}, seed {self.seed}"


def carry_out(job: Job) -> dict[str, Any]:
    """Train in this process, and return its evaluations.

    Raises:
        RuntimeError: the run has failed; the message has the end of what it said.
    """
    from tl.command import let_idle_threads_sleep

    let_idle_threads_sleep()  # as the commands do, before torch is imported
    source, target = DIRECTIONS[job.direction]
    run_dir = job.made / f"{job.recipe}-{source}-{job.seed}".replace(" ", "-")
    keys: Keys = {
        **COMMON,
        "model.weights": job.weights.resolve(),
        "data.root": job.data.resolve(),
        "data.source_domains": f"[{source}]",
        "data.target_domain": target,
        "seed": job.seed,
        "run_dir": run_dir,
        "cache.folder": job.made / "cache",
        **RECIPES[job.recipe],
    }
    if job.recipe in WITHOUT_SOURCE:
        before = run_dir.with_name(f"{run_dir.name}-source")
        _train({**keys, **RECIPES["source only"], "run_dir": before}, job.more, before)
        for name in ("data.root", "data.source_domains", "data.target_domain"):
            del keys[name]
        keys["data.target_root"] = job.data.resolve() / target
        keys["model.weights"] = before / "last"
    return _train(keys, job.more, run_dir)


def _train(keys: Keys, more: Sequence[str], run_dir: Path) -> dict[str, Any]:
    from launch import train
    from tl.engine import runtime

    log = run_dir.with_name(f"{run_dir.name}.log")
    with output_to(log):
        code = train.main([f"{key}={value}" for key, value in keys.items()] + list(more))
        runtime.stop()  # the next one starts anew in this process
    if code:
        raise RuntimeError(log.read_text()[-2000:])
    summary = json.loads((run_dir / "summary.json").read_text())
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    evaluations = [
        {key: round(line[key], 5) for key in KEPT if key in line}
        for line in lines
        if "target/im" in line
    ]
    shutil.rmtree(run_dir / "checkpoints")
    return {"evaluations": evaluations, "training_seconds": summary["training_seconds"]}
