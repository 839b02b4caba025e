"""Objectives of domain adaptation have the same loss and gradient on 1, 2 and 4 processes."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from adaptation_toys import adaptation, shares_of_all, two_domains
from gloo_workers import GlooWorkers
from torch import Tensor, testing

from tl.arguments import load
from tl.engine import runtime

# Float64 sums in another order; the gradient of a singular value magnifies rounding a little.
CLOSE = 1e-10

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dann": ("dann", {"width": 7}),
    "cdan": ("cdan", {"width": 7}),
    "cdan+e": ("cdan", {"width": 7, "entropy": True}),
    "cdan+e randomised": (
        "cdan",
        {"width": 7, "entropy": True, "randomized": True, "randomized_width": 9},
    ),
    "mdd": ("mdd", {"width": 7, "strength": 0.8}),
    "bsp": ("bsp", {"width": 7, "beta": 0.3, "k": 2}),
    "coral": ("coral", {"strength": 900.0}),
    "coral of features": ("coral", {"strength": 900.0, "layer": "features"}),
    "dan": ("dan", {"strength": 0.7, "kernels": 3}),
    "jan": ("jan", {"strength": 0.7, "width": 0.9}),
    "mcc": ("mcc", {"strength": 0.6, "temperature": 1.7}),
    "cdan_mcc": ("cdan_mcc", {"width": 7, "entropy": True, "mcc": 0.6}),
    "afn": ("afn", {"strength": 0.4, "step": 0.5}),
    "fixmatch": ("fixmatch", {"strength": 0.8, "threshold": 0.4}),
}
"""far from the defaults where these would hide a term; a new objective is a line here"""

BATCHES: list[tuple[int, dict[str, int]]] = [
    (11, {"global_batch_size": 11}),
    # Fewer images than processes: some have padding alone.
    (3, {"global_batch_size": 8}),
    (11, {"global_batch_size": 13, "gradient_accumulation": 2}),
]


def steps(name: str, options: dict[str, Any]) -> list[tuple[dict[str, float], dict[str, Tensor]]]:
    """Of each batch this process's part of what is logged, and the gradient after DDP."""
    here = runtime.start(load(None, [], environ={}).config)
    return [step(here, name, options, n, keys) for n, keys in BATCHES]


def step(
    here: runtime.Runtime, name: str, options: dict[str, Any], n: int, keys: dict[str, int]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    made = adaptation(name, options, dropout=True, **keys)
    trained = here.accelerator.prepare(made)
    domains = two_domains(n, strong="strong" in made.streams)
    micro_batches = shares_of_all(domains, here.rank, here.world_size, made.phase)
    sums: dict[str, float] = {}
    for number, batch in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        with contextlib.nullcontext() if last else here.accelerator.no_sync(trained):
            output = trained(batch, 0.3)
            (output["loss"] * here.world_size).backward()
        for key, value in output.items():
            sums[key] = sums.get(key, 0.0) + value.item()
    gradients = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
    return sums, gradients


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_one_process(gloo_workers: GlooWorkers, case: str) -> None:
    [alone] = gloo_workers.run(1, steps, *CASES[case])
    for world_size in (2, 4):
        together = gloo_workers.run(world_size, steps, *CASES[case])
        for number, (sums, gradients) in enumerate(alone):
            assert len(gradients) >= 6
            parts = [results[number] for results in together]
            for key, value in sums.items():
                assert sum(part[key] for part, _ in parts) == pytest.approx(value, rel=CLOSE), key
            for _, found in parts:
                assert found.keys() == gradients.keys()
                for parameter, gradient in gradients.items():
                    testing.assert_close(found[parameter], gradient, rtol=CLOSE, atol=CLOSE)
