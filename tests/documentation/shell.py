"""A shell for the blocks of a page, in a folder where what they name is there.

`bash` reads a block as it stands. It finds the commands of `commands.RULES`, which says how each is
run, and the tools of /usr/bin and /bin. In the folder is a copy of what commands name of this
repository. What else a block names, such as FOLDER, is made by `PLACEHOLDERS`, and a run that no
block before has made is a copy of one that was trained for two steps.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from commands import RULES
from PIL import Image
from torchvision import models

ROOT = Path(__file__).parents[2]
COPIED = ("benchmarks", "configs", "docs", "launch", "pyproject.toml", "slurm")
# Given by the environment, so what a block says itself goes before it.
SMALL = {
    "TL_STEPS": "2",
    "TL_DATA__IMAGE_SIZE": "64",
    "TL_DATA__MAX_TRAIN": "8",
    "TL_DATA__MAX_VAL": "12",
    "TL_DATA__WORKERS": "0",
    "TL_GLOBAL_BATCH_SIZE": "4",
    "TL_MODEL__NAME": "squeezenet1_0",
    "TL_THREADS": "1",
    "TL_TRACKING__TRACKERS": "[jsonl, console]",  # not in a block about W&B
}
# Networks whose weights blocks ask for: random ones are where a download would leave them.
PUBLISHED = ("resnet18", "squeezenet1_0")
SECONDS = 250


def write_images(folder: Path, number: int, color: int = 0) -> None:
    """JPEG files of noise and some colour."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(number):
        pixels = random.integers(0, 128, (80, 64, 3), dtype=np.uint8)
        pixels[..., color] += 127
        Image.fromarray(pixels).save(folder / f"{i}.jpg")


def labelled(folder: Path) -> None:
    for part in ("train", "val"):
        for color, name in enumerate(("ants", "bees")):
            write_images(folder / part / name, 6, color)


def photos(folder: Path) -> None:
    """Some in folders of classes, some in no class."""
    write_images(folder, 2)
    for color, name in enumerate(("ants", "bees")):
        write_images(folder / name, 10, color)


def unlabelled(folder: Path) -> None:
    write_images(folder, 12)


def image(file: Path) -> None:
    Image.new("RGB", (80, 64), "orange").save(file)


def config(file: Path) -> None:
    shutil.copy(ROOT / "configs" / "finetune.yaml", file)


def write_weights(architecture: str, file: Path) -> None:
    """Of the kind that is published, but random."""
    torch.save(models.get_model(architecture, weights=None).state_dict(), file)


PLACEHOLDERS: dict[str, Callable[[Path], None]] = {
    "CONFIG.yaml": config,
    "FOLDER": labelled,
    "IMAGES": unlabelled,
    "IMAGE_OR_FOLDER": unlabelled,
    "LABELLED": labelled,
    "UNLABELLED": unlabelled,
    "drawings": unlabelled,
    "photo.jpg": image,
    "photos": photos,
    "squeezenet1_0-imagenet.pth": lambda file: write_weights("squeezenet1_0", file),
}
RUN = re.compile(r"(?:RUN|RUN_DIR|runs/[\w.-]+(?:/[\w.-]+)?)")
ADAPTED = "runs/adapted"
"""a run with a target domain"""


@dataclass
class Shell:
    """Runs blocks one after another, in a folder of its own."""

    folder: Path
    environ: dict[str, str]
    trained: Path
    """where runs are trained that are copied into the folder"""

    def run(self, block: str) -> subprocess.CompletedProcess[str]:
        """The block by bash, which stops at the first command that fails."""
        for name in self.named(block):
            self.make(name)
        return self.bash(block, self.folder)

    def bash(self, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
        environ = dict(self.environ)
        if re.search("(?i)wandb|tl sync", text):
            environ.pop("TL_TRACKING__TRACKERS", None)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def named(self, block: str) -> list[str]:
        """What the block reads and nobody has made yet; not what it makes itself."""
        words = re.split(r"[\s'\"\\=,]+", block)
        made = set(re.findall(r"(?:run_dir=|--(?:save|output)[ =])([\w./-]+)", block))
        within = tuple(f"{name}/" for name in made)
        first = [word.partition("/")[0] for word in words]
        found = [name for name in first if name in PLACEHOLDERS]
        found += [word for word in words if RUN.fullmatch(word)]
        return [
            name
            for name in dict.fromkeys(found)
            if not (self.folder / name).exists()
            and name not in made
            and not name.startswith(within)
        ]

    def make(self, name: str) -> None:
        """What is called so; runs are trained once for all shells, in two phases."""
        if not RUN.fullmatch(name):
            PLACEHOLDERS[name](self.folder / name)
            return
        # Below runs/ the network of the README's commands; others are weights of SMALL's networks.
        keys = "model.name=resnet18 " if name.startswith("runs/") else ""
        keys += "data.target_root=UNLABELLED " if name == ADAPTED else ""
        run = self.trained / (keys.translate(str.maketrans("=. ", "___")) or "run")
        if not run.exists():
            for word in ("FOLDER", "UNLABELLED"):
                if not (self.trained / word).exists():
                    PLACEHOLDERS[word](self.trained / word)
            command = f"tl train strategy=lp_ft data.root=FOLDER {keys} run_dir={run.name}"
            done = self.bash(command, self.trained)
            assert done.returncode == 0, done.stdout + done.stderr
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(run, self.folder / name)


def open_folder(folder: Path) -> Path:
    """A copy of what commands name by its path in the repository."""
    folder.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def environment(place: Path, socket: Path) -> dict[str, str]:
    """With stand-ins of the commands, weights, and nothing of who runs the test."""
    stand_ins = place / "bin"
    stand_ins.mkdir()
    for name in RULES:
        file = stand_ins / name
        client = Path(__file__).with_name("stand_in.py")
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{client}" {name} "$@"\n')
        file.chmod(0o755)
    weights = place / "torch" / "hub" / "checkpoints"
    weights.mkdir(parents=True)
    for name in PUBLISHED:
        url = models.get_model_weights(name).DEFAULT.url
        write_weights(name, weights / Path(url).name)
    named = ("ATEN_CPU_CAPABILITY", "OMP_WAIT_POLICY")
    kept = {name: os.environ[name] for name in named if name in os.environ}
    return {
        **kept,
        **SMALL,
        "PATH": f"{stand_ins}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(place),
        "TORCH_HOME": str(place / "torch"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "ACCELERATE_USE_CPU": "true",
        "WANDB_MODE": "offline",
        "DOCUMENTED_COMMANDS": str(socket),
    }


def start_commands(socket: Path) -> subprocess.Popen[bytes]:
    """The process in whose forks commands are carried out; it is ready when it listens."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("commands.py"), socket],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    while not socket.exists():
        assert server.poll() is None, "the server of commands has ended"
        time.sleep(0.05)
    return server
