"""One work, as the command line of this project and of each peer, and what each of them reports."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from measure import ROOT, Values, last_json, run

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PYTHON = [sys.executable]
ACCELERATE = [str(BIN / "accelerate"), "launch"]
TWO_PROCESSES = [
    *ACCELERATE,
    "--config_file",
    str(ROOT / "configs" / "accelerate" / "cpu_2_processes.yaml"),
]


@dataclass(frozen=True)
class Work:
    """What all contenders are to do."""

    data: Path
    model: str
    weights: Path | None
    train: str = "full"
    """head or full"""
    augment: str = "standard"
    """none (the view of validation) or standard (random resized crop and flip)"""
    epochs: int = 3
    batch_size: int = 32
    lr: float = 0.001
    """Head-only it leaves the order of the images little say: with it four orders had 138 or 139 of
    hymenoptera's 153 validation images right in the end, with 0.01 it was 140 to 144."""
    momentum: float = 0.9
    step_epochs: int = 7
    gamma: float = 0.1
    clip_norm: float = 1.0
    image_size: int = 224
    seed: int = 0

    @property
    def images(self) -> dict[str, int]:
        """Number of images of train and val."""
        return {
            split: sum(1 for _ in (self.data / split).glob("*/*")) for split in ("train", "val")
        }


def peers(work: Work, gpu: bool) -> dict[str, Callable[[], Values]]:
    """The peers that are at hand, by the names that the tables show."""
    found = {
        "plain PyTorch loop": partial(peer, PYTHON, "plain", work),
        "Accelerate's example": partial(peer, ACCELERATE, "accelerate_cv", work),
    }
    if importlib.util.find_spec("lightning"):
        found["Lightning"] = partial(peer, PYTHON, "lightning_cv", work)
    if gpu and _timm_has(work.model):
        found["timm"] = partial(peer, PYTHON, "timm_cv", work)
    return found


def not_at_hand(work: Work, gpu: bool) -> list[str]:
    """Why which peer is not measured."""
    notes = []
    if not importlib.util.find_spec("lightning"):
        notes.append("Lightning: not measured, it is not installed")
    if not gpu:
        notes.append("timm's loader and model: not measured, no GPU")
    elif not _timm_has(work.model):
        notes.append(f"timm: not measured, it is not installed or has no {work.model}")
    return notes


def _timm_has(model: str) -> bool:
    if not importlib.util.find_spec("timm"):
        return False
    import timm

    return timm.is_model(model)


def peer(launcher: Sequence[str], name: str, work: Work) -> Values:
    """One run of ``benchmarks/peers/NAME.py``."""
    arguments = {
        "data": work.data,
        "model": work.model,
        "train": work.train,
        "augment": work.augment,
        "epochs": work.epochs,
        "batch-size": work.batch_size,
        "lr": work.lr,
        "momentum": work.momentum,
        "step-epochs": work.step_epochs,
        "gamma": work.gamma,
        "clip-norm": work.clip_norm,
        "image-size": work.image_size,
        "seed": work.seed,
    }
    words = [f"--{name}={value}" for name, value in arguments.items()]
    if work.weights:
        words.append(f"--weights={work.weights}")
    with tempfile.TemporaryDirectory() as folder:  # Lightning writes into the folder it is run in
        command = [*launcher, str(HERE / "peers" / f"{name}.py"), *words]
        seconds, lines = run(command, cwd=folder)
    return {"wall_seconds": seconds, **last_json(lines)}


def own_arguments(work: Work) -> list[str]:
    """The same work as arguments of ``launch/train.py``."""
    values = {
        "data.root": work.data,
        "model.name": work.model,
        "model.weights": work.weights or "null",
        "strategy": work.train,
        "augment": work.augment,
        "epochs": work.epochs,
        "global_batch_size": work.batch_size,
        "optimizer.name": "sgd",
        "optimizer.lr": work.lr,
        "optimizer.momentum": work.momentum,
        "schedule.name": "step",
        "schedule.step_epochs": work.step_epochs,
        "schedule.gamma": work.gamma,
        "clip_norm": work.clip_norm,
        "data.image_size": work.image_size,
        "seed": work.seed,
    }
    return [f"{key}={value}" for key, value in values.items()]


def own(launcher: Sequence[str], work: Work, cache: Path | None = None) -> Values:
    """One run of this project; with an empty cache of its own, or that of ``cache``."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        places = [f"run_dir={run_dir}", f"cache.folder={cache or Path(folder, 'cache')}"]
        command = [*launcher, str(ROOT / "launch" / "train.py"), *own_arguments(work), *places]
        seconds, lines = run(command, cwd=folder)
        summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "wall_seconds": seconds,
        "seconds_to_first_step": summary["seconds_to_first_step"],
        "images_per_second": summary["images_per_second"],
        "best_accuracy": summary["val/accuracy"],
        "last_accuracy": summary["last/val/accuracy"],
        "got": lines[0],  # processes, device, precision and threads
    }


def own_cold(launcher: Sequence[str], work: Work, cache: Path) -> Values:
    """A run that finds ``cache`` empty, and says whether it leaves something there."""
    shutil.rmtree(cache, ignore_errors=True)
    values = own(launcher, work, cache)
    return {**values, "wrote_cache": has_files(cache)}


def has_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def worker(name: str, *arguments: object, launcher: Sequence[str] = PYTHON) -> Values:
    """One run of ``benchmarks/workers/NAME.py``: what it prints."""
    command = [*launcher, str(HERE / "workers" / f"{name}.py"), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        # Threads that wait sleep, as in this project's commands.
        _, lines = run(command, cwd=folder, OMP_WAIT_POLICY="PASSIVE")
    return last_json(lines)
