"""How long a run takes to know a large folder of images, and what memory that takes.

    python benchmarks/index.py FOLDER [IMAGES] [CLASSES]

Fills FOLDER with hard links, and then with symbolic links, to a few images, unless it has been
filled before, and opens each of them as a source in fresh processes, with and without an index:
seconds and the growth of the process's memory, its own (private) and what it may share with others
(pages of the index), after the source was opened and after 100 batches of 64 were drawn from the
training sampler and looked up by name and label.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 3
TARGETS = 20  # ext4 has at most 65,000 links to a file


def main() -> None:
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(Path(sys.argv[2]), Path(sys.argv[3]))))
        return
    folder = Path(sys.argv[1])
    images, classes = (int(word) for word in [*sys.argv[2:], "1000000", "100"][:2])
    print("| links | index | seconds | CPU seconds | private MB | shared MB | after 100 batches |")
    print("|---|---|---|---|---|---|---|")
    for kind in ("hard", "symbolic"):
        root, place = folder / f"{kind}-{images}", folder / "index"
        fill(root, images, classes, symbolic=kind == "symbolic")
        for state in ("none yet", "there"):
            rows = []
            for _ in range(ROUNDS):
                if state == "none yet":
                    shutil.rmtree(place, ignore_errors=True)
                command = [sys.executable, __file__, "--measure", str(root), str(place)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append(json.loads(done.stdout))
            seconds, cpu = (
                " / ".join(f"{row[key]:.2f}" for row in rows) for key in ("seconds", "cpu")
            )
            memory = " | ".join(f"{rows[-1][key]:.0f}" for key in ("private", "shared", "later"))
            print(f"| {kind} | {state} | {seconds} | {cpu} | {memory} |", flush=True)


def fill(root: Path, images: int, classes: int, *, symbolic: bool = False) -> None:
    """``root/CLASS/NAME.jpg``: links to a few images beside root, which are made as well."""
    if root.is_dir():
        return
    from PIL import Image

    targets = root.with_name(f"{root.name}-targets")
    targets.mkdir(parents=True, exist_ok=True)
    for i in range(TARGETS):
        Image.new("RGB", (32, 32), (12 * i, 0, 0)).save(targets / f"{i}.jpg")
    draft = root.with_name(f"{root.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    link = os.symlink if symbolic else os.link
    for label in range(classes):
        below = draft / f"class_{label:04d}"
        below.mkdir(parents=True)
        for i in range(label, images, classes):
            link(targets / f"{i // classes % TARGETS}.jpg", below / f"image_{i:08d}.jpg")
    draft.rename(root)
    time.sleep(2.5)  # a folder that has just changed is not indexed


def measure(root: Path, place: Path) -> dict[str, float]:
    """Seconds to open the source, and MB by which this process has grown."""
    from tl.config import DataConfig
    from tl.data.sampler import TrainSampler
    from tl.data.sources import open_source

    private, shared = memory()
    began, used = time.perf_counter(), time.process_time()
    source = open_source(DataConfig(source="folder", root=str(root)), 0, place)
    found: dict[str, float] = {"seconds": time.perf_counter() - began}
    found["cpu"] = time.process_time() - used
    now = memory()
    found |= {"private": now[0] - private, "shared": now[1] - shared}
    sampler = TrainSampler(len(source.train), 64, 0, 0, 0, 100, 0, 1)
    for batch in sampler:
        for _, i in batch:
            assert source.train.names[i].startswith(source.classes[source.train.labels[i]])
    return {**found, "later": memory()[0] - private}


def memory() -> tuple[float, float]:
    """MB of this process that are its own, and that are pages of files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kb["Anonymous"] / 1e3, (kb["Rss"] - kb["Anonymous"]) / 1e3


if __name__ == "__main__":
    main()
