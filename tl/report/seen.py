"""What a report wants to know of an evaluation, besides its sums: kept small, whatever the data.

Of a million images there stay the counts of the reliability diagram, the few images that a person
would look at, and a sample of predictions by which runs are compared. All of it is made of whole
numbers, so it is the same to the last bit on any number of processes that compute the same
probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

BINS = 15
"""of equal width, as in Guo et al., ICML 2017"""
SHOWN = 18
"""images in a grid"""
TOP = 3
"""classes of an image in a grid"""
MOST_COMPARED = 10_000
"""predictions that are kept to compare runs by; of more images every second, third, … counts"""
UNIT = 2**30
"""A probability is kept as a whole number of these parts of 1, whose sums depend on no order."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen, over all processes. Images are called by their position in their split."""

    bins: np.ndarray
    """int64 (3, BINS): images, of these the right ones, and the sum of their confidences in 1/UNIT.
    Bin m holds confidences in (m / BINS, (m + 1) / BINS]."""
    mistakes: Rows
    """the mistakes of highest confidence, that one first"""
    unsure: Rows
    """the images of lowest confidence, that one first"""
    compared: np.ndarray
    """int64 (4, K), by position: position, label, what it was called, confidence in 1/UNIT"""


@dataclass(frozen=True, eq=False)
class Rows:
    """A few images, with the classes of highest probability, that one first."""

    ids: np.ndarray
    """int64 (K,)"""
    labels: np.ndarray
    """int64 (K,)"""
    classes: np.ndarray
    """int64 (K, TOP), or fewer columns if there are fewer classes"""
    parts: np.ndarray
    """int64 (K, TOP): probabilities in 1/UNIT"""


class Watch:
    """Looks at the batches of an evaluation on one process; nothing here waits for the device."""

    def __init__(self, images: int, num_classes: int, device: torch.device) -> None:
        """``images`` are those of the whole split."""
        self._every = max(1, -(-images // MOST_COMPARED))
        self._bins = torch.zeros(3, BINS, dtype=torch.int64, device=device)
        columns = 2 + 2 * min(TOP, num_classes)
        empty = torch.full((SHOWN, columns), -1, dtype=torch.int64, device=device)
        self._mistakes, self._unsure = empty, empty.clone()
        self._compared: list[Tensor] = []

    def add(self, ids: Tensor, labels: Tensor, logits: Tensor, weight: Tensor) -> None:
        """Take a batch.

        Args:
            ids: int64 (N,) positions on the CPU, −1 for padding; the others are on the device.
            labels: int64 (N,).
            logits: (N, C).
            weight: (N,), 1, or 0 for padding.
        """
        device, real = logits.device, weight > 0
        p, classes = logits.double().softmax(1).topk(min(TOP, logits.shape[1]), dim=1)
        called = logits.argmax(1)  # of equal ones the first, as the accuracy has it
        # A swap, as `topk` may have put another of equal ones first.
        classes = torch.where(classes == called[:, None], classes[:, :1], classes)
        classes[:, 0] = called
        parts = (p * UNIT).round().long()
        confidence, right = parts[:, 0], called == labels

        bins = (-(-confidence * BINS // UNIT) - 1).clamp(0, BINS - 1)
        counted = torch.stack([real.long(), (real & right).long(), confidence * real])
        self._bins.scatter_add_(1, bins.expand(3, -1), counted)

        there = ids.to(device, non_blocking=True)
        rows = torch.cat([there[:, None], labels[:, None], classes, parts], dim=1)
        self._mistakes = _first(self._mistakes, rows, real & ~right, largest=True)
        self._unsure = _first(self._unsure, rows, real, largest=False)
        # On the CPU, or the host would wait to hear how many there are.
        chosen = ((ids >= 0) & (ids % self._every == 0)).nonzero()[:, 0].to(device)
        some = torch.stack([there, labels, called, confidence])
        self._compared.append(some[:, chosen])

    def gather(
        self, all_reduce: Callable[[Tensor], Tensor], from_all: Callable[[list[Tensor]], list]
    ) -> Seen:
        """What all processes have seen; every one of them calls this."""
        compared = torch.cat([torch.empty(4, 0, dtype=torch.int64), *_cpu(self._compared)], dim=1)
        sent = [self._mistakes.cpu(), self._unsure.cpu(), compared]
        parts = from_all(sent)
        every = torch.cat(parts[2::3], dim=1)
        return Seen(
            bins=all_reduce(self._bins).cpu().numpy(),
            mistakes=_rows(torch.cat(parts[0::3]), largest=True),
            unsure=_rows(torch.cat(parts[1::3]), largest=False),
            compared=every[:, every[0].argsort()].numpy(),
        )


def _cpu(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.cpu() for tensor in tensors]


def _first(kept: Tensor, rows: Tensor, wanted: Tensor, largest: bool) -> Tensor:
    """The `SHOWN` rows of both that come first; see `_order`."""
    rows = torch.where(wanted[:, None], rows, -1)
    both = torch.cat([kept, rows])
    return both[_order(both, largest).topk(min(SHOWN, len(both))).indices]


def _order(rows: Tensor, largest: bool) -> Tensor:
    """A whole number for each row, the higher the sooner it comes: by confidence, then position."""
    columns = (rows.shape[1] - 2) // 2
    confidence = rows[:, 2 + columns]
    first = confidence if largest else UNIT - confidence
    order = first * 2**32 + (2**32 - 1 - rows[:, 0])
    return torch.where(rows[:, 0] < 0, -1, order)  # a row that is none


def _rows(rows: Tensor, largest: bool) -> Rows:
    rows = rows[_order(rows, largest).argsort(descending=True)]
    rows = rows[rows[:, 0] >= 0][:SHOWN]
    columns = (rows.shape[1] - 2) // 2
    table = rows.numpy()
    return Rows(table[:, 0], table[:, 1], table[:, 2 : 2 + columns], table[:, 2 + columns :])
