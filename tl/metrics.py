"""Exact metrics: integer counts and float64 sums, reduced over all processes once.

Nothing is averaged over processes, so the number of processes and the size of the last batch do
not matter. Sums stay on the device until `reduce`, so that a step waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]


class Sums:
    """Named float64 sums over images. Counts up to 2**53 are exact in them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add this process's share; each value is a scalar, a sum or a count over images."""
        for name, value in values.items():
            value = value.detach().to(torch.float64, copy=True)  # the caller's may change
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_all(self, other: Sums, unless: Tensor) -> None:
        """Add what another one has counted, or zeros if the scalar ``unless`` is true."""
        for name, value in other._sums.items():
            self.add(**{name: torch.where(unless, torch.zeros_like(value), value)})

    def reduce(self, all_reduce: AllReduce) -> dict[str, float]:
        """The sums over all processes, after which this counts from zero again.

        Every process must have added the same names. This waits for the device.
        """
        total = self.so_far(all_reduce)
        self._sums = {}
        return total

    def so_far(self, all_reduce: AllReduce) -> dict[str, float]:
        """The same, and goes on counting."""
        names = sorted(self._sums)
        if not names:
            return {}
        stacked = torch.stack([self._sums[name].to(self._device) for name in names])
        return dict(zip(names, all_reduce(stacked).tolist(), strict=True))

    def start_from(self, sums: Mapping[str, float], here: bool) -> None:
        """Count on from what `so_far` gave: ``here`` on one process, from zero on the others."""
        for name, value in sums.items():
            start = value if here else 0.0
            self.add(**{name: torch.tensor(start, dtype=torch.float64, device=self._device)})


class Confusion:
    """A confusion matrix of integer counts: entry (i, j) counts images of class i called j."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, labels: Tensor, predictions: Tensor, weight: Tensor) -> None:
        """Count a batch: int64 labels and predictions (N,), and weight (N,), 1 or 0 (padding)."""
        num_classes = len(self.counts)
        cells = labels * num_classes + predictions
        self.counts.view(-1).scatter_add_(0, cells, weight.to(torch.int64))

    def reduce(self, all_reduce: AllReduce) -> Tensor:
        """The int64 counts (C, C) over all processes, on the CPU."""
        return all_reduce(self.counts).cpu()


def per_class(confusion: Tensor) -> list[dict[str, float | int]]:
    """Precision, recall, F1 and number of images of each class, from a confusion matrix (C, C).

    What has no images is 0, as scikit-learn's ``zero_division=0``.
    """
    matrix = confusion.to(torch.float64)
    hits, support, called = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    recall = hits / support.clamp(min=1)
    precision = hits / called.clamp(min=1)
    f1 = 2 * hits / (support + called).clamp(min=1)
    return [
        {
            "precision": precision[i].item(),
            "recall": recall[i].item(),
            "f1": f1[i].item(),
            "images": int(support[i].item()),
        }
        for i in range(len(matrix))
    ]
