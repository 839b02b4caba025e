"""The gradient of one step: of the mean over a global batch, whoever holds which part of it."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from tl.data.streams import Batch, batches_in
from tl.engine.nonfinite import Guard
from tl.engine.runtime import Runtime
from tl.metrics import Sums


def add_gradient(
    runtime: Runtime,
    guard: Guard,
    trained: nn.Module,
    batch: list[Batch],
    images: int | None,
    progress: float,
) -> tuple[Sums, Tensor]:
    """Add the gradient of the mean loss over a global batch to that of the parameters.

    Every process calls this with its share, and has the gradient of the whole batch afterwards.

    Args:
        trained: an objective, as `Accelerator.prepare` has wrapped it.
        batch: this process's micro-batches, on the device and with their images' keys.
        images: in the global batch, of each domain, or None if that has to be counted: some may be
            left out.
        progress: how much of the phase is done, 0 to 1.

    Returns:
        Sums over this process's images of what is logged, with ``loss`` and ``images``; and its
        share of the mean loss, a scalar.
    """
    sums, losses = Sums(runtime.device), []
    # Of each domain there are as many images.
    for parts in zip(*(batches_in(micro_batch) for micro_batch in batch), strict=True):
        global_count: Tensor | int | None = images
        if global_count is None:
            here = torch.stack([part["weight"].sum() for part in parts]).sum()
            global_count = runtime.all_reduce(here).clamp(min=1)
        for part in parts:
            part["global_count"] = global_count
    for micro_batch in batch:
        global_count, count = micro_batch["global_count"], micro_batch["weight"].sum()
        meets = micro_batch is batch[-1]  # the processes reduce their gradients once a step
        with contextlib.nullcontext() if meets else runtime.accelerator.no_sync(trained):
            output = trained(micro_batch, progress)
            loss = output.pop("loss")
            # Each process holds its share of the global mean. DDP divides the sum of the gradients
            # by the number of processes, which this takes back.
            guard.backward(loss, runtime.world_size)
        losses.append(loss.detach())
        total = losses[-1].double() * global_count
        sums.add(**{"loss": total, "images": count, **output})
    return sums, torch.stack(losses).sum()
