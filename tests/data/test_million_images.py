"""A folder of a million images is known in bounded memory, and listed once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tl.data import tree_index

CLASSES = 100

OPEN = """
import json, os, sys
from pathlib import Path
import numpy as np
from tl.config import DataConfig
from tl.data.sampler import TrainSampler
from tl.data.sources import open_source

def private():  # MB that are this process's own; pages of the index are everybody's
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1e3

root, place = sys.argv[1:]
scandir, scans = os.scandir, []
os.scandir = lambda path: scans.append(str(path)) or scandir(path)
before = private()
source = open_source(DataConfig(source="folder", root=root), 0, Path(place))
opened = private()
sampler = TrainSampler(len(source.train), 64, 0, 0, 0, 50, 0, 1)
seen = set()
for batch in sampler:
    for _, i in batch:
        name = source.train.names[i]
        assert name.split("/")[0] == source.classes[source.train.labels[i]]
        assert source.train.read(i).size == (8, 8)
        seen.add(name)
print(json.dumps({
    "scans": sum(path.startswith(root) for path in scans),
    "images": [len(source.train), len(source.val)],
    "per class": np.unique(np.bincount(source.val.labels)).tolist(),
    "seen": len(seen),
    "opened": opened - before,
    "drawn": private() - before,
}))
"""


def fill(root: Path, per_class: int, link: object) -> Path:
    """Links to 20 images; a file system may allow no more than 65,000 to each."""
    targets = root.with_name("targets")
    targets.mkdir()
    for i in range(20):
        Image.new("RGB", (8, 8), (12 * i, 0, 0)).save(targets / f"{i}.png")
    for label in range(CLASSES):
        below = root / f"class_{label:03d}"
        below.mkdir(parents=True)
        for i in range(per_class):
            link(targets / f"{i % 20}.png", below / f"{i:06d}.png")  # type: ignore[operator]
    time.sleep(tree_index.SETTLED + 0.1)
    return root


def opened(root: Path, place: Path) -> dict[str, object]:
    command = [sys.executable, "-c", OPEN, str(root), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("per_class", "link"),
    [
        pytest.param(10_000, os.link, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
        pytest.param(100, os.symlink),
    ],
)
def test_a_large_folder_is_listed_once_and_takes_little_memory(
    tmp_path: Path, per_class: int, link: object
) -> None:
    root, place = fill(tmp_path / "data", per_class, link), tmp_path / "index"
    cold, warm = opened(root, place), opened(root, place)
    for found in (cold, warm):
        assert found["images"] == [CLASSES * per_class * 4 // 5, CLASSES * per_class // 5]
        assert found["per class"] == [per_class // 5]
        assert found["seen"] == 50 * 64
    # The folder itself, twice: for its classes and for images beside them; and each class.
    assert (cold["scans"], warm["scans"]) == (CLASSES + 2, 0)
    # For each image a label, and a position in the names and in the images, 24 bytes, and as much
    # while validation images are chosen; 8 more for an epoch's order. 16 MB for what is imported.
    most = 16 + CLASSES * per_class * 48 / 1e6
    assert warm["opened"] < most
    assert warm["drawn"] < most + CLASSES * per_class * 8 / 1e6
