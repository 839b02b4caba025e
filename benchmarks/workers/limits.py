"""What the arithmetic and the decoding allow: rates on batches that are in memory already.

    python benchmarks/workers/limits.py step|forward|head|decode|views DATA MODEL SIZE BATCH SECONDS

``step`` is a training step of all layers, ``forward`` a forward pass in eval mode, ``head`` a
training step of the head on features in memory; each with the precision, the threads, the memory
format and the optimizer that a run gets. ``decode`` reads and decodes files as they are, ``views``
makes augmented views of them as a run's loader does, both on all cores. Random weights: they do not
change the time. Prints one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from tl.config import Config, DataConfig, OptimizerConfig
from tl.data.sources import open_source
from tl.data.streams import Images
from tl.data.transforms import augmented_view
from tl.engine import runtime
from tl.freezing import freeze, trainable_names
from tl.models import zoo
from tl.models.preprocessing import preprocessing_of, with_image_size
from tl.optim import make_optimizer, parameter_groups

WARM_UP = 3
"""calls that are not counted: kernels are chosen, memory is got"""


def main() -> None:
    what, data, model, size, batch, seconds = sys.argv[1:]
    work = (model, int(size), int(batch))
    if what in ("decode", "views"):
        values = files_per_second(what, Path(data), model, int(size), float(seconds))
    else:
        values = images_per_second(what, *work, float(seconds))
    print(json.dumps(values))


def images_per_second(
    what: str,
    model: str,
    size: int,
    batch: int,
    seconds: float,
    here: runtime.Runtime | None = None,
) -> dict:
    """The rate of ``step``, ``forward`` or ``head``, on the runtime ``here`` or one of its own."""
    here = here or runtime.start(Config())
    device = here.device
    network = zoo.build(model, 2, size).to(device).to(memory_format=torch.channels_last)
    freeze(network, trainable_names(network, "head" if what == "head" else "full"))
    network.train(what != "forward")
    config = OptimizerConfig(lr=1e-4)
    optimizer = make_optimizer(parameter_groups(network.model.named_parameters(), config), config)
    start = len(network.stages) - 1 if what == "head" else 0
    inputs = []
    for _ in range(4):
        images = torch.randn(batch, 3, size, size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), here.accelerator.autocast():
            inputs.append(network.features(images, start) if start else images)
    labels = torch.randint(0, 2, (batch,), device=device)
    x = itertools.cycle(inputs)
    keys, weight = torch.arange(batch, device=device), torch.ones(batch, device=device)

    def forward() -> None:
        with torch.no_grad(), here.accelerator.autocast():
            network(next(x))

    def step() -> None:
        network.expect({"key": keys, "weight": weight})
        with here.accelerator.autocast():
            logits = network(next(x), start)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    rate = batch * _calls_per_second(forward if what == "forward" else step, seconds, device)
    return {"images_per_second": rate, "got": here.describe()}


def _calls_per_second(call: Callable[[], None], seconds: float, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        call()
    wait()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or calls < WARM_UP:
        call()
        calls += 1
    wait()
    return calls / (time.perf_counter() - began)


def files_per_second(what: str, data: Path, model: str, size: int, seconds: float) -> dict:
    """The rate of ``decode`` or ``views``, of as many processes as there are cores."""
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.Pool(cores) as pool:
        tasks = [(what, data, model, size, seconds, part, cores) for part in range(cores)]
        rates = pool.starmap(_rate_of_one_process, tasks)
    return {"images_per_second": sum(rates), "got": f"{cores} processes"}


def _rate_of_one_process(
    what: str, data: Path, model: str, size: int, seconds: float, part: int, parts: int
) -> float:
    torch.set_num_threads(1)
    split = open_source(DataConfig(root=str(data)), 0).train
    assert split.root is not None
    preprocessing = with_image_size(preprocessing_of(model, None), size)
    images = Images(split, augmented_view(preprocessing, "standard"), 0, size, "fast")
    mine = itertools.cycle(range(part, len(split), parts))
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        i = next(mine)
        if what == "decode":
            with Image.open(split.root / split.names[i]) as image:
                image.convert("RGB")
        else:
            images[done, i]
        done += 1
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
