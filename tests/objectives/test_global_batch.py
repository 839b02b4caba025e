"""Any objective has the same loss and gradient on 1, 2 and 4 processes, however a batch is cut."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers
from hypothesis import given as for_all
from hypothesis import strategies as st
from objective_toys import OPTIONS, objective, shares, whole_batch
from torch import Tensor

from tl.arguments import load
from tl.config import Phase
from tl.data.sampler import share, share_of_pairs
from tl.engine import runtime
from tl.objectives.global_batch import largest_share

# Float64 sums in another order; the gradient of a singular value magnifies rounding a little.
CLOSE = 1e-10
MIXES = {"mixup": 0.4, "cutmix": 1.0, "class_weights": "balanced", "focal": 2.0}


def step(name: str, n: int, keys: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """This process's part of the loss of a batch of n images, and the gradient after DDP."""
    here = runtime.start(load(None, [], environ={}).config)
    made = objective(name, dropout=True, **keys)
    trained = here.accelerator.prepare(made)
    micro_batches = shares(whole_batch(n), here.rank, here.world_size, made.phase)
    total = 0.0
    for number, batch in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        with contextlib.nullcontext() if last else here.accelerator.no_sync(trained):
            loss = trained(batch, 0.5)["loss"]
            (loss * here.world_size).backward()
        total += loss.item()
    gradients = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
    return total, gradients


CASES = [
    *((name, 11, {"global_batch_size": 11}) for name in OPTIONS),
    # Fewer images than processes: some have padding alone.
    *((name, 3, {"global_batch_size": 8}) for name in ("bss", "lwf")),
    ("bss", 11, {"global_batch_size": 13, "gradient_accumulation": 2}),
    ("supervised", 13, {"global_batch_size": 13, **MIXES}),
    ("bss", 11, {"global_batch_size": 16, "gradient_accumulation": 2, **MIXES}),
    ("co_tuning", 3, {"global_batch_size": 8, **MIXES}),
]


@pytest.mark.parametrize(("name", "n", "keys"), CASES, ids=str)
def test_loss_and_gradient_are_those_of_one_process(
    gloo_workers: GlooWorkers, name: str, n: int, keys: dict[str, Any]
) -> None:
    [(loss, gradients)] = gloo_workers.run(1, step, name, n, keys)
    assert len(gradients) >= 6
    for world_size in (2, 4):
        results = gloo_workers.run(world_size, step, name, n, keys)
        assert sum(part for part, _ in results) == pytest.approx(loss, rel=CLOSE)
        for _, found in results:
            assert found.keys() == gradients.keys()
            for parameter, gradient in gradients.items():
                torch.testing.assert_close(found[parameter], gradient, rtol=CLOSE, atol=CLOSE)


@for_all(st.integers(1, 64), st.integers(1, 4), st.integers(1, 8), st.booleans(), st.data())
def test_no_share_is_larger_than_the_largest(
    batch: int, micro_batches: int, processes: int, mixes: bool, data: st.DataObject
) -> None:
    phase = Phase(
        name="p", train="full", global_batch_size=batch, gradient_accumulation=micro_batches,
        mixup=float(mixes),
    )  # fmt: skip
    n = data.draw(st.integers(1, batch))
    parts = min(micro_batches, n)
    cut = share_of_pairs if mixes else share
    for part in range(parts):
        images = range(n)[share(n, part, parts)]
        sizes = [len(images[cut(len(images), rank, processes)]) for rank in range(processes)]
        assert sum(sizes) == len(images)
        assert max(sizes) <= largest_share(phase, processes)
