"""Prediction over many small images: how fast, and in how much memory. The figures of predict.md.

    python benchmarks/predict.py FOLDER [--images 100000] [--processes 1 2] [--json FILE]

Makes FOLDER/one-tenth and FOLDER/all, hard links to 300 JPEGs of 64 pixels in folders of 1000, and
a ShuffleNet V2 x0.5 for 32 pixels whose weights are random: it is the rest that is measured. Then
`launch/predict.py` runs in real processes, over a tenth of the images and over all of them. Of each
process the system says how much memory it had at most (VmHWM): what a tenth needs and all need
should be the same. The rate is of the nine tenths more, so without the start. Each process has one
thread and no loader's workers: then all files have the same bytes, and a rate is that of one core.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import machine
import numpy as np
import psutil
import torch
from PIL import Image

from tl.models import saved, zoo
from tl.models.preprocessing import preprocessing_of, with_image_size

ROOT = Path(__file__).parents[1]
DISTINCT = 300
IN_A_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    save_network(given.folder / "model")
    counts = {"one-tenth": given.images // 10, "all": given.images}
    for name, count in counts.items():
        link_images(given.folder / name, count, given.folder / "distinct")
    report: dict[str, Any] = {"machine": machine.describe(), "load before": os.getloadavg()[0]}
    for processes in given.processes:
        runs = {name: measure(given.folder, name, processes) for name in counts}
        more = counts["all"] - counts["one-tenth"]
        seconds = runs["all"]["seconds"] - runs["one-tenth"]["seconds"]
        report[f"{processes} processes"] = {
            **{f"{counts[name]} images": run for name, run in runs.items()},
            "images_per_second": round(more / seconds, 1),
        }
    report["load after"] = os.getloadavg()[0]
    if {1, 2} <= set(given.processes):
        report["1 and 2 processes"] = differences(*(output(given.folder, "all", n) for n in (1, 2)))
    text = json.dumps(report, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n")


def save_network(folder: Path) -> None:
    torch.manual_seed(0)
    network = zoo.build("shufflenet_v2_x0_5", 10, 32)
    recipe = with_image_size(preprocessing_of("shufflenet_v2_x0_5", None), 32)
    saved.save(network, [f"class {i}" for i in range(10)], recipe, folder)


def link_images(root: Path, count: int, distinct: Path) -> None:
    distinct.mkdir(parents=True, exist_ok=True)
    for i in range(DISTINCT):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(
            distinct / f"{i}.jpg"
        )
    for i in range(count):
        path = root / f"{i // IN_A_FOLDER:05}" / f"{i:08}.jpg"
        if i % IN_A_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.link(distinct / f"{i % DISTINCT}.jpg", path)


def output(folder: Path, name: str, processes: int) -> Path:
    return folder / f"{name}-{processes}.csv"


def measure(folder: Path, name: str, processes: int) -> dict[str, Any]:
    """Seconds of a prediction, and MB that each kind of its processes had at most."""
    environ = {**os.environ, "ACCELERATE_USE_CPU": "true", "SLURM_CPUS_ON_NODE": str(processes)}
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        words += ["--num_processes", str(processes), "--mixed_precision", "no"]
        words += ["--dynamo_backend", "no", "--main_process_port", "0"]
    words += [str(ROOT / "launch" / "predict.py"), str(folder / "model"), str(folder / name)]
    words += ["--output", str(output(folder, name, processes))]
    began = time.monotonic()
    child = psutil.Popen(words, env=environ)
    most: dict[int, tuple[str, float]] = {}
    while child.poll() is None:
        with suppress(psutil.Error):
            for process in [child, *child.children(recursive=True)]:
                with suppress(psutil.Error, OSError, StopIteration):
                    most[process.pid] = (kind_of(process), high_water(process.pid))
        time.sleep(0.25)
    seconds = time.monotonic() - began
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {child.returncode}")
    found: dict[str, list[float]] = {}
    for kind, memory in most.values():
        found.setdefault(kind, []).append(memory)
    return {"seconds": round(seconds, 1), "MB": {k: sorted(v) for k, v in found.items()}}


def kind_of(process: psutil.Process) -> str:
    return "launcher" if "accelerate.commands.launch" in process.cmdline() else "process"


def high_water(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line for line in lines if line[:6] == "VmHWM:").split()[1]) / 1e3, 1)


def differences(one: Path, other: Path) -> dict[str, Any]:
    """How far apart two files of predictions are."""
    if one.read_bytes() == other.read_bytes():
        return {"same bytes": True}
    most, others = 0.0, 0
    with one.open(newline="") as first, other.open(newline="") as second:
        for a, b in zip(csv.DictReader(first), csv.DictReader(second), strict=True):
            assert a["path"] == b["path"]
            others += a["class"] != b["class"]
            most = max(most, *(abs(float(a[k]) - float(b[k])) for k in a if k.startswith("p(")))
    return {"same bytes": False, "largest difference": most, "other class": others}


if __name__ == "__main__":
    main()
