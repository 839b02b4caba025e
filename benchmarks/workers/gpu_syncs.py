"""Where the host waits for the GPU within a step; the aim is nowhere.

    python benchmarks/workers/gpu_syncs.py "" DATA FOLDER tiny|whole

What torch warns of in five steps of a run, what CUDA is asked in five others, and which single
pieces of a step return while the GPU is still busy.
"""

from __future__ import annotations

import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from gpu_part import Told, a_run, cuda, guarded
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tl.config import Config, OptimizerConfig
from tl.engine import loop, runtime
from tl.engine.agreement import Agreement, Wishes
from tl.engine.inputs import to_network
from tl.models.dropout import Draws, image_keys
from tl.models.preprocessing import preprocessing_of
from tl.optim import make_optimizer, parameter_groups

Values = dict[str, Any]
WATCHED, PROFILED = (5, 10), (15, 20)
"""steps, from and to"""


def main() -> None:
    told = Told.by_command_line()
    few = (
        *(("data.max_train=24", "global_batch_size=1") if told.tiny else ("global_batch_size=64",)),
        "data.max_val=16",
        "tracking.log_every=1000",
        "steps=22",
        "data.workers=2" if told.tiny else "data.workers=8",
    )
    ways = {
        "full": ("strategy=full", "augment=standard"),
        "dropout": ("strategy=full", "model.name=squeezenet1_1", "optimizer.name=adamw"),
        "accumulation": ("strategy=full", "gradient_accumulation=2"),
        "head, from the cache": ("strategy=head", "augment=none"),
    }
    guarded("pieces", pieces)
    if told.tiny:
        few = (*few, "global_batch_size=2", "data.max_train=48")
    for name, more in ways.items():
        guarded(name, partial(watched, told, name, (*few, *more)))


def watched(told: Told, name: str, arguments: tuple[str, ...]) -> Values:
    """A run; torch's warnings in some of its steps, and CUDA's calls in others."""
    calls, places, original = 0, Counter[str](), loop.set_lr
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    profile = torch.profiler.profile(activities=kinds[: 1 + cuda()])

    def counted(*values: Any) -> float:
        nonlocal calls
        calls += 1
        if cuda() and calls in WATCHED:
            torch.cuda.set_sync_debug_mode("warn" if calls == WATCHED[0] else "default")
        if calls == PROFILED[0]:
            profile.__enter__()
        if calls == PROFILED[1]:
            profile.__exit__(None, None, None)
        return original(*values)

    def noted(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" not in str(message):
            return
        stack = traceback.extract_stack()[:-1]
        frames = [f for f in stack if "/tl/" in f.filename] or stack[-3:]
        inner = stack[-1]
        where = " < ".join(
            f"{f.filename.rpartition('/tl/')[2]}:{f.lineno}" for f in reversed(frames[-3:])
        )
        places[f"{where} ({inner.filename.rpartition('/')[2]}:{inner.lineno})"] += 1

    with warnings.catch_warnings(), mock.patch.object(loop, "set_lr", counted):
        warnings.simplefilter("always")
        warnings.showwarning = noted
        try:
            a_run(told, f"syncs-{name.replace(', ', '-').replace(' ', '-')}", *arguments)
        finally:
            if cuda():
                torch.cuda.set_sync_debug_mode("default")
    asked = Counter(
        event.name for event in profile.events() or () if re.match(r"cuda?[A-Z]", event.name)
    )
    steps = PROFILED[1] - PROFILED[0]
    return {
        "right": not places,
        "steps": calls,
        "warned_of": dict(places.most_common(20)),
        "calls_of_cuda_in_a_step": {key: n / steps for key, n in asked.most_common(15)},
    }


def pieces() -> Values:
    """Milliseconds until the host goes on, with the GPU busy for some hundred."""
    device = torch.device("cuda" if cuda() else "cpu")
    runtime.stop()
    here = runtime.start(Config())
    preprocessing = preprocessing_of("resnet18", None)
    pinned = torch.zeros(64, 224, 224, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    ids, there = torch.arange(64), torch.arange(64, device=device)
    if cuda():
        pinned = pinned.pin_memory()
    network = torch.nn.Conv2d(3, 8, 3, device=device)
    config = OptimizerConfig()
    groups = parameter_groups(network.named_parameters(), config)
    optimizer: Any = make_optimizer(groups, config)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    agreement, draws = Agreement(here), Draws()
    draws.keys = there
    flag = torch.zeros((), dtype=torch.bool, device=device)
    parameters = list(network.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]

    def update() -> None:
        optimizer.grad_scale, optimizer.found_inf = None, flag.float()
        optimizer.step()

    work: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a small tensor to the device": lambda: torch.tensor([1.0, 2.0]).to(
            device, non_blocking=True
        ),
        "to_network": lambda: to_network({"image": pinned}, device, preprocessing),
        "image_keys": lambda: image_keys(0, 1, there),
        "dropout": lambda: draws.keeps(1, torch.Size([64, 512, 13, 13]), 0.5),
        "agreement.tell": lambda: agreement.tell(1, Wishes(), flag, flag),
        "norm and clip": lambda: clip_grads_with_norm_(parameters, 1.0, get_total_norm(gradients)),
        "fused step": update,
        "item (waits, as it should)": lambda: flag.item(),
    }
    if cuda():
        work["ids of features"] = lambda: ids.pin_memory().to(device, non_blocking=True)
    took = {name: _milliseconds(piece) for name, piece in work.items()}
    runtime.stop()
    waits = [name for name, value in took.items() if value > 40 and not name.startswith("item")]
    return {"right": not waits, "waits": waits, "milliseconds": took}


def _milliseconds(piece: Callable[[], object]) -> float:
    for _ in range(3):
        piece()
    if cuda():
        torch.cuda.synchronize()
        torch.cuda._sleep(300_000_000)
    began = time.perf_counter()
    piece()
    took = 1000 * (time.perf_counter() - began)
    if cuda():
        torch.cuda.synchronize()
    return round(took, 3)


if __name__ == "__main__":
    main()
