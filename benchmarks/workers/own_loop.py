"""This project's loop with a toy network and a batch in memory; all else is a run as it comes.

    python|torchrun benchmarks/workers/own_loop.py TOY STEPS WARM_UP RUN_DIR [KEY=VALUE ...]

The trackers of a run are on: record, console, and W&B, offline without a key. Prints the
microseconds that a step takes, from the times in the record's lines: logging, agreement and all
else between two steps are in them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import toys

from tl.arguments import load
from tl.command import is_main_process
from tl.engine import prepare, run, runtime
from tl.engine.state import Run
from tl.models.network import Network
from tl.models.preprocessing import preprocessing_of, with_image_size
from tl.models.stages import Stage
from tl.models.weights import LoadReport


def main() -> None:
    toy, run_dir = sys.argv[1], sys.argv[4]
    steps, warm_up = int(sys.argv[2]), int(sys.argv[3])
    # What is not to be measured is replaced: the network by a toy, the loader by a batch in memory.
    prepare.make_network = lambda config, source: (
        network(toy),
        with_image_size(preprocessing_of("resnet18", None), toys.SIZE),
        LoadReport("random weights", (), (), ()),
    )
    Run.open_stream = open_stream  # type: ignore[method-assign]
    loaded = load(
        None,
        [
            "model.weights=null",
            f"global_batch_size={toys.IMAGES}",  # so few that no epoch ends before the last step
            f"steps={steps}",
            "strategy=full",
            "optimizer.lr=0.001",
            "schedule.name=constant",
            "clip_norm=null",
            "threads=1",
            "cache.features=false",
            f"run_dir={run_dir}",
            *sys.argv[5:],
        ],
    )
    run.run(loaded)
    if is_main_process():
        record = Path(run_dir, "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in record.splitlines()]
        at = {line["step"]: line["time"] for line in lines if "train/loss" in line}
        seconds = at[steps] - at[warm_up]
        print(json.dumps({"microseconds": 1e6 * seconds / (steps - warm_up)}), flush=True)
    runtime.stop()


def network(toy: str) -> Network:
    torch.manual_seed(0)
    model = toys.Toy(toys.LAYERS[toy])
    stages = (Stage("body", ("body",), ("body",)), Stage("head", ("head",), ("head",)))
    return Network(model, toy, {"num_classes": toys.CLASSES}, stages)


class InMemory:
    """The same batch, as often as a sampler has one."""

    def __init__(self, this: Run, sampler: Any) -> None:
        self.images, self.labels = toys.batch(this.runtime.world_size)
        self.sampler = sampler
        self.pinned = this.runtime.device.type == "cuda"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = len(self.labels)
        tensors = {
            "image": self.images,
            "label": self.labels,
            "id": torch.arange(count),
            "round": torch.zeros(count, dtype=torch.int64),
            "mate": torch.arange(count) ^ 1,
            "weight": torch.ones(count),
        }
        if self.pinned:  # as a loader's batches are on a GPU
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        for _ in range(len(self.sampler)):
            yield {**tensors, "bad": [], "start": 0}


def open_stream(
    this: Run, split: Any, view: Any, sampler: Any, views: int | None = None
) -> InMemory:
    """In place of `Run.open_stream`."""
    return InMemory(this, sampler)


if __name__ == "__main__":
    main()
