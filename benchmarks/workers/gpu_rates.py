"""Images a second on the GPU, and the memory that training takes there.

    python benchmarks/workers/gpu_rates.py train|head|memory DATA FOLDER tiny|whole

All runs of a part are in one process: what it has loaded does not count. A rate of training leaves
the first lines of the record out, until the batches that were made ahead are used up.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import limits
import torch
from gpu_part import Told, a_run, cuda, guarded, losses
from torch import nn

from tl.arguments import load
from tl.config import DataConfig
from tl.data.sampler import TrainSampler
from tl.data.sources import open_source
from tl.data.streams import default_workers, open_stream
from tl.data.transforms import augmented_view
from tl.engine import runtime
from tl.engine.runtime import Runtime
from tl.models.preprocessing import preprocessing_of, with_image_size

Values = dict[str, Any]
ROUNDS = 2


def main() -> None:
    told = Told.by_command_line()
    precision = "bf16" if cuda() else "auto"
    here = runtime.start(load(None, [f"mixed_precision={precision}"], environ={}).config)
    {"train": train, "head": head, "memory": memory}[told.what](told, here)


def model(told: Told) -> str:
    return "resnet18" if told.tiny else "resnet50"


def size(told: Told) -> int:
    return 64 if told.tiny else 224


# ------------------------------------------------------------------------------------------- train


def train(told: Told, here: Runtime) -> None:
    """All layers, from files; what bounds it: the step on images on the GPU, and the loader."""
    cores = default_workers(1) if told.tiny else 15
    for number in range(ROUNDS):
        for batch in (4, 8) if told.tiny else (256, 128):
            contenders: dict[str, Callable[[], Values]] = {
                "step on images in memory": partial(step, told, here, batch),
                f"own, {cores} workers": partial(own, told, here, batch, cores),
            }
            if batch > 200 or told.tiny:
                contenders["own, default workers"] = partial(own, told, here, batch, None)
            for name, measure in contenders.items():
                guarded(f"{name}, batch {batch}, round {number + 1}", measure)
        if number == 0:
            batch = 8 if told.tiny else 256
            for workers in {default_workers(1), cores}:
                guarded(f"loader, {workers} workers", partial(loader, told, batch, workers))
            guarded("step on images in memory, cudnn.benchmark", partial(tuned, told, here, batch))
            guarded(f"timm, {cores} workers, batch {batch}", partial(timm, told, batch, cores))


def step(told: Told, here: Runtime, batch: int) -> Values:
    clean()
    return limits.images_per_second(
        "step", model(told), size(told), batch, 0.3 if told.tiny else 4.0, here
    )


def tuned(told: Told, here: Runtime, batch: int) -> Values:
    """The same with convolutions chosen by trying them."""
    torch.backends.cudnn.benchmark = True
    try:
        return step(told, here, batch)
    finally:
        torch.backends.cudnn.benchmark = False


def own(told: Told, here: Runtime, batch: int, workers: int | None) -> Values:
    clean()
    steps, every = (6, 1) if told.tiny else (140 if batch < 200 else 100, 20)
    name = f"train-{batch}-{workers}-{time.monotonic_ns()}"
    arguments = [
        f"model.name={model(told)}",
        "strategy=full",
        "augment=standard",
        f"global_batch_size={batch}",
        f"steps={steps}",
        f"tracking.log_every={every}",
        "optimizer.lr=0.01",
        "data.max_val=8" if told.tiny else "data.max_val=64",
        f"data.workers={'null' if workers is None else workers}",
    ]
    summary, lines = a_run(told, name, *arguments, shared=here)
    lines = [line for line in lines if "train/loss" in line]
    first, last = lines[1], lines[-1]
    seconds = last["time"] - first["time"]
    return {
        "images_per_second": batch * (last["step"] - first["step"]) / seconds,
        "of_each_line": [round(line["images_per_second"], 1) for line in lines],
        "loss": losses(lines)[-1],
        "wall_seconds": summary["wall_seconds"],
    }


def loader(told: Told, batch: int, workers: int) -> Values:
    """This project's loader with nothing behind it."""
    split = open_source(DataConfig(root=str(told.data)), 0).train
    preprocessing = with_image_size(preprocessing_of(model(told), None), size(told))
    skipped = max(2, workers)
    counted = 2 if told.tiny else 40
    stream = open_stream(
        split,
        augmented_view(preprocessing, "standard"),
        TrainSampler(
            num_images=len(split),
            global_batch_size=batch,
            seed=0,
            first_epoch=0,
            first_step=0,
            last_step=skipped + counted,
            rank=0,
            world_size=1,
        ),
        seed=0,
        size=size(told),
        decode="fast",
        workers=workers,
        pin_memory=cuda(),
    )
    began = 0.0
    images = 0
    for i, made in enumerate(stream):
        if i >= skipped:
            images += len(made["label"])
        if i == skipped - 1:
            began = time.perf_counter()
    return {"images_per_second": images / (time.perf_counter() - began)}


def timm(told: Told, batch: int, workers: int) -> Values:
    """timm's loader, which normalises on the GPU, and its model, in the shortest loop."""
    from timm import create_model
    from timm.data import create_dataset, create_loader

    clean()
    device = torch.device("cuda" if cuda() else "cpu")
    network = create_model(model(told), num_classes=10).to(device)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    stream = create_loader(
        create_dataset("", root=str(told.data), split="train", class_map=""),
        input_size=(3, size(told), size(told)),
        batch_size=batch,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        use_prefetcher=cuda(),
        num_workers=workers,
        device=device,
    )
    first, last = (1, 3) if told.tiny else (2 * workers + 10, 2 * workers + 70)
    began = 0.0
    for i, (images, labels) in enumerate(stream, start=1):
        images = images.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(images)
        loss = nn.functional.cross_entropy(logits.float(), labels.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if i == first:
            loss.item()
            began = time.perf_counter()
        if i == last:
            break
    value = loss.item()
    return {
        "images_per_second": batch * (last - first) / (time.perf_counter() - began),
        "loss": value,
    }


# -------------------------------------------------------------------------------------------- head


def head(told: Told, here: Runtime) -> None:
    """A head on kept features, and what bounds it: the head's step on features on the GPU."""
    for number in range(ROUNDS):
        for batch in (4, 8) if told.tiny else (256, 1024):
            guarded(
                f"own, from the cache, batch {batch}, round {number + 1}",
                partial(own_head, told, here, batch),
            )
            guarded(
                f"head on features in memory, batch {batch}, round {number + 1}",
                partial(head_in_memory, told, here, batch),
            )


def own_head(told: Told, here: Runtime, batch: int) -> Values:
    clean()
    epochs = 2 if told.tiny else (10 if batch < 500 else 20)
    summary, lines = a_run(
        told,
        f"head-{batch}-{time.monotonic_ns()}",
        f"model.name={model(told)}",
        "strategy=head",
        "augment=none",
        "data.max_train=16384",
        f"global_batch_size={batch}",
        f"epochs={epochs}",
        "tracking.log_every=50",
        shared=here,
    )
    rates = [line["images_per_second"] for line in lines if "train/loss" in line]
    return {
        "images_per_second": median(rates[1:]),
        "of_the_whole_run": summary["images_per_second"],
        "of_each_line": [round(rate) for rate in rates[:20]],
        "wall_seconds": summary["wall_seconds"],
        "frozen_unchanged": summary["frozen_unchanged"],
    }


def head_in_memory(told: Told, here: Runtime, batch: int) -> Values:
    clean()
    return limits.images_per_second(
        "head", model(told), size(told), batch, 0.3 if told.tiny else 2.0, here
    )


# ------------------------------------------------------------------------------------------ memory


def memory(told: Told, here: Runtime) -> None:
    """The most that tensors take of the GPU's memory, by strategy."""
    runs = {
        "full": ("strategy=full", "augment=standard"),
        "last_stages(2)": ("strategy=last_stages(2)", "augment=standard"),
        "head": ("strategy=head", "augment=standard", "cache.features=false"),
        "head, from the cache": ("strategy=head", "augment=none"),
        "head, from the cache, found": ("strategy=head", "augment=none"),
    }
    for name, arguments in runs.items():
        guarded(name, partial(peak, told, here, arguments))


def peak(told: Told, here: Runtime, arguments: tuple[str, ...]) -> Values:
    batch = 4 if told.tiny else 128
    clean()
    before = torch.cuda.memory_allocated() if cuda() else 0
    if cuda():
        torch.cuda.reset_peak_memory_stats()
    a_run(
        told,
        f"memory-{time.monotonic_ns()}",
        f"model.name={model(told)}",
        f"global_batch_size={batch}",
        f"data.max_train={4 * batch}",
        f"data.max_val={batch}",
        "epochs=1",
        *arguments,
        shared=here,
    )
    if not cuda():
        return {"peak_mb": None}
    megabyte = 2**20
    return {
        "peak_mb": torch.cuda.max_memory_allocated() / megabyte,
        "peak_reserved_mb": torch.cuda.max_memory_reserved() / megabyte,
        "before_mb": before / megabyte,
    }


def clean() -> None:
    """What an earlier contender held is gone."""
    gc.collect()
    if cuda():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
