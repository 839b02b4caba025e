"""A real cluster, whatever `sinfo` shows, and what tests do with it: submit, wait, look."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
NETWORK = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=48",
    "data.max_val=24",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "strategy=last_stages(2)",
    "augment=flip",
    "global_batch_size=8",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
]
# Steps of 0.3 s, and a checkpoint after each of them.
SLOW = [*NETWORK, "objective=outside_objectives:Slow", "steps=24", "checkpoint.every_steps=1"]


@dataclass
class Cluster:
    """Submits from a folder of its own."""

    folder: Path
    environ: dict[str, str]
    jobs: list[str] = field(default_factory=list)

    def command(self, *words: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def submit(self, *words: str, **environ: str) -> str:
        """``sbatch OPTIONS SCRIPT ARGUMENTS``; returns the job's id."""
        asked = Cluster(self.folder, {**self.environ, **environ})
        job = asked.command("sbatch", "--parsable", "--cpus-per-task=1", *words)
        self.jobs.append(job)
        return job

    def states(self, job: str) -> dict[str, str]:
        """Of each task of an array, or of the one job: name -> state."""
        shown = self.command("scontrol", "show", "job", "--oneliner", job)
        found = {}
        for line in shown.splitlines():
            task = re.search(r"ArrayTaskId=(\d+)", line)
            state = re.search(r"JobState=(\w+)", line)
            assert state is not None
            found[task[1] if task else job] = state[1]
        return found

    def shown(self, job: str, key: str) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{key}=(\S*)", self.command("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def wait(self, job: str, seconds: float = 240) -> str:
        """Wait for the end; returns the state, one of `OVER`."""
        self.until(lambda: set(self.states(job).values()) <= set(OVER), seconds, job)
        [state] = set(self.states(job).values())
        return state

    def until(self, happened: Callable[[], object], seconds: float, job: str) -> None:
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, f"{self.states(job)}\n{self.logs()}"
            time.sleep(0.2)

    def until_step(self, job: str, run_dir: Path, step: int) -> None:
        """Wait until there is the checkpoint of a step."""
        folder = run_dir / "checkpoints" / f"step-{step}"
        self.until(lambda: folder.exists() or newest(run_dir) > step, 120, job)

    def logs(self) -> str:
        """What all jobs have printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.rglob("*.log")))


def newest(run_dir: Path) -> int:
    names = [path.name for path in run_dir.glob("checkpoints/step-*")]
    return max((int(name[5:]) for name in names if name[5:].isdecimal()), default=-1)


def record(run_dir: Path) -> list[dict[str, Any]]:
    """The record of a run without what is of its time."""
    timing = {"time", "images_per_second"}
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def left_running(of: Path) -> list[str]:
    """Processes of any node that have the folder in their command line. Nodes share the host."""
    found = subprocess.run(["pgrep", "-af", str(of)], capture_output=True, text=True).stdout
    return found.splitlines()


def environment(**more: str) -> dict[str, str]:
    """That of a user who has this project in an environment, and Slurm."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TL_", "SLURM_JOB"))}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    kept["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    # The nodes have no GPUs but in name.
    return {**kept, "ACCELERATE_USE_CPU": "true", **more}


def there_is_one(environ: Mapping[str, str]) -> bool:
    if shutil.which("sinfo") is None:
        return False
    try:
        asked = ["sinfo", "--noheader", "--format=%D"]
        done = subprocess.run(asked, env=dict(environ), capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
