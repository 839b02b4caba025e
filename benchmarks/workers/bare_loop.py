"""The shortest training loop there is, with or without DDP, with a toy network.

    torchrun --nproc-per-node N benchmarks/workers/bare_loop.py TOY STEPS WARM_UP HOW

HOW is ``ddp``; ``flags``, the same with five numbers that the processes share after each step, and
look at a step later, as this project's do to stop and to fail together; ``alone``, without DDP; or
``gpu``, one process without DDP that copies each batch to the GPU. All others are on the CPU.
Prints the microseconds that a step takes on the main process.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque

import torch
import toys
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    toy, steps, warm_up, wrapping = sys.argv[1:]
    torch.set_num_threads(1)
    rank, processes = 0, 1
    model: nn.Module = toys.Toy(toys.LAYERS[toy])
    if wrapping in ("ddp", "flags"):
        torch.distributed.init_process_group("gloo")
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    images, labels = toys.batch(processes)
    device = torch.device("cuda" if wrapping == "gpu" else "cpu")
    if wrapping == "gpu":
        model.to(device).to(memory_format=torch.channels_last)
        images, labels = images.pin_memory(), labels.pin_memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)
    model.train()
    told: deque[tuple[torch.distributed.Work, torch.Tensor]] = deque()
    for step in range(int(steps)):
        if step == int(warm_up):
            began = time.perf_counter()
        x, y = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if wrapping == "flags":
            flags = torch.zeros(5)
            told.append((torch.distributed.all_reduce(flags, async_op=True), flags))
            if len(told) > 1:
                work, flags = told.popleft()
                work.wait()
                flags.tolist()
    for work, _ in told:
        work.wait()
    loss.item()  # all is done
    seconds = time.perf_counter() - began
    if rank == 0:
        print(json.dumps({"microseconds": 1e6 * seconds / (int(steps) - int(warm_up))}))
    if wrapping in ("ddp", "flags"):
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
