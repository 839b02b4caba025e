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
    """Named float64 sums over images. Counts up to 2**53 are exact in them.

    They are one vector: to add to it takes a few operations, however many sums there are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: list[str] = []
        self._vector = torch.zeros(0, dtype=torch.float64, device=device)

    def add(self, **values: Tensor) -> None:
        """Add this process's share; each value is a scalar, a sum or a count over images."""
        if not values:
            return
        # Of a whole number and a float32, torch would make a float32.
        floats = [v.detach() if v.is_floating_point() else v.double() for v in values.values()]
        self._add(list(values), torch.stack(floats).to(self._device, torch.float64))

    def add_all(self, other: Sums, unless: Tensor) -> None:
        """Add what another one has counted, or zeros if the scalar ``unless`` is true."""
        self._add(other._names, other._vector.masked_fill(unless, 0))

    def _add(self, names: list[str], vector: Tensor) -> None:
        if names == self._names:
            self._vector = self._vector + vector
            return
        if not self._names:
            self._names, self._vector = names, vector
            return
        # Other names than before, which is rare: on a GPU the host waits here.
        new = [name for name in names if name not in self._names]
        wider = torch.zeros(len(self._names) + len(new), dtype=torch.float64, device=self._device)
        wider[: len(self._names)] = self._vector
        self._names = [*self._names, *new]
        places = torch.tensor([self._names.index(name) for name in names], device=self._device)
        self._vector = wider.index_add(0, places, vector)

    def reduce(self, all_reduce: AllReduce) -> dict[str, float]:
        """The sums over all processes, after which this counts from zero again.

        Every process must have added the same names. This waits for the device.
        """
        total = self.so_far(all_reduce)
        self._names, self._vector = [], self._vector[:0]
        return total

    def so_far(self, all_reduce: AllReduce) -> dict[str, float]:
        """The same, and goes on counting."""
        if not self._names:
            return {}
        order = sorted(range(len(self._names)), key=self._names.__getitem__)
        total = all_reduce(self._vector[order]).tolist()
        return {self._names[place]: value for place, value in zip(order, total, strict=True)}

    def start_from(self, sums: Mapping[str, float], here: bool) -> None:
        """Count on from what `so_far` gave: ``here`` on one process, from zero on the others."""
        self.add(
            **{n: torch.tensor(v if here else 0.0, dtype=torch.float64) for n, v in sums.items()}
        )


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


def macro_f1(confusion: Tensor) -> float:
    """Mean F1 over the classes that an image has or was called, from a confusion matrix (C, C).

    As scikit-learn's ``f1_score(average="macro")``.
    """
    matrix = confusion.to(torch.float64)
    hits, seen = matrix.diagonal(), matrix.sum(0) + matrix.sum(1)
    return (2 * hits / seen.clamp(min=1))[seen > 0].mean().item()


def balanced_accuracy(confusion: Tensor) -> float:
    """Mean recall over the classes that an image has, from a confusion matrix (C, C).

    As scikit-learn's ``balanced_accuracy_score``.
    """
    matrix = confusion.to(torch.float64)
    hits, support = matrix.diagonal(), matrix.sum(1)
    return (hits / support.clamp(min=1))[support > 0].mean().item()


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
