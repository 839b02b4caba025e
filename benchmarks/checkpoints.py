"""What a checkpoint costs: how long training waits for it, and how long it takes to write.

    python benchmarks/checkpoints.py FOLDER [ARCHITECTURE ...]

For each architecture, with SGD's momentum beside the weights, prints the megabytes of a checkpoint,
the milliseconds of the copy, which is all that training waits for, those of the write that goes on
meanwhile (with sha256 sums and fsync), and their ratio: medians of ten, after one that is not
counted, taken in turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from torchvision import models

from tl.engine import checkpoint
from tl.models import tensor_files

ROUNDS = 10


def main() -> None:
    folder, *architectures = sys.argv[1:]
    print("| network | MB | copy, ms (min to max) | write, ms (min to max) | write / copy |")
    print("|---|---|---|---|---|")
    for name in architectures or ("squeezenet1_1", "resnet18", "resnet50"):
        state = models.get_model(name, weights=None).state_dict()
        tensors = checkpoint.under("network", state) | checkpoint.under("optimizer", state)
        megabytes = sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6
        copies, writes = [], []
        for step in range(ROUNDS + 1):
            began = time.perf_counter()
            copied = tensor_files.copies(tensors)
            copies.append(1e3 * (time.perf_counter() - began))
            began = time.perf_counter()
            checkpoint.write(Path(folder), step, {}, copied, keep=2)
            writes.append(1e3 * (time.perf_counter() - began))
        ratio = statistics.median(w / c for w, c in zip(writes[1:], copies[1:], strict=True))
        print(f"| {name} | {megabytes:.0f} | {_row(copies)} | {_row(writes)} | {ratio:.1f} |")


def _row(values: list[float]) -> str:
    counted = values[1:]
    return f"{statistics.median(counted):.1f} ({min(counted):.1f} to {max(counted):.1f})"


if __name__ == "__main__":
    main()
