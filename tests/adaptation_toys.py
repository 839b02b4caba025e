"""Batches of two domains, whole and in shares, for the toy network of `objective_toys`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from objective_toys import given, rows, toy, whole_batch

from tl.config import Phase
from tl.data.sampler import share
from tl.models.dropout import image_keys
from tl.objectives import Objective, make_objective


def adaptation(name: str, options: dict[str, Any], dropout: bool = False, **keys: Any) -> Objective:
    """The objective of that name with the toy network, always from the same weights."""
    network = toy(0)
    phase = Phase(name="p", train="full", objective=name, objective_options=options, **keys)
    made = make_objective(network, phase, given())
    for module in made.modules():
        if hasattr(module, "p") and not dropout:
            module.p = 0.0
    return made.train()


def two_domains(n: int, strong: bool = False) -> dict[str, Any]:
    """A labelled batch of ``n`` images with as many of the target in it, which have no label."""
    batch = whole_batch(n)
    others = ["target", "strong"] if strong else ["target"]
    for i, name in enumerate(others, 1):
        part = whole_batch(n)
        del part["label"]
        draw = torch.Generator().manual_seed(100 * i + n)
        part["image"] = 1 + torch.randn(part["image"].shape, generator=draw, dtype=torch.float64)
        part["key"] = image_keys(i, 3, part["id"])
        batch[name] = part
    return batch


def rows_of_all(batch: dict[str, Any], chosen: Sequence[int]) -> dict[str, Any]:
    """`rows` of the batch and of each batch in it."""
    inner = {name: value for name, value in batch.items() if isinstance(value, dict)}
    outer = {name: value for name, value in batch.items() if name not in inner}
    return rows(outer, chosen) | {name: rows(part, chosen) for name, part in inner.items()}


def shares_of_all(
    batch: dict[str, Any], rank: int, parts: int, phase: Phase
) -> list[dict[str, Any]]:
    """What a process has of each micro-batch: of all domains as many images."""
    n = len(batch["id"])
    found = []
    for micro_batch in range(min(phase.gradient_accumulation, n)):
        images = range(n)[share(n, micro_batch, min(phase.gradient_accumulation, n))]
        found.append(rows_of_all(batch, images[share(len(images), rank, parts)]))
    return found
