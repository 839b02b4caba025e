"""Batches of features, in place of the images that they were made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tl.data.features.entry import Entry
from tl.data.sampler import PADDING
from tl.data.split import Split
from tl.data.streams import Batch, Sampler


@dataclass(frozen=True)
class Features:
    """The features of a split's images: one entry for each of their views."""

    split: Split
    views: int
    """how many views there are of an image; an epoch takes the one of its number modulo this"""
    entries: Mapping[int, Entry]
    """by view, those that are needed"""
    rows: Mapping[int, Tensor]
    """of each entry, uint8 (N, stride): a memory map, or on the device"""
    start: int
    """the stage that they go into"""
    pin_memory: bool

    def stream(self, sampler: Sampler) -> FeatureStream:
        """This process's batches, one for each item of ``sampler``; see `Batch`."""
        return FeatureStream(self, sampler)

    @property
    def on_device(self) -> bool:
        return any(rows.device.type != "cpu" for rows in self.rows.values())

    def close(self) -> None:
        """Let others delete the entries."""
        for entry in self.entries.values():
            entry.close()


class FeatureStream:
    """Gathers rows for batches. A batch takes no worker: it is one copy from memory to memory."""

    def __init__(self, features: Features, sampler: Sampler) -> None:
        self.features, self.sampler = features, sampler
        self._bad = {view: entry.bad for view, entry in features.entries.items()}
        self._labels = torch.from_numpy(features.split.labels)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for keys in self.sampler:
            view = keys[0][0] % self.features.views  # all of a batch are of one epoch
            bad_rows = self._bad[view]
            wanted = [i for _, i in keys if i != PADDING]
            good = [i for i in wanted if i not in bad_rows] if bad_rows else wanted
            names = self.features.split.names
            # A process cannot sit a step out: with nothing to take it gets one row of weight 0.
            ids = torch.tensor(good or [0])
            yield {
                "image": self._take(view, ids),
                "label": self._labels[ids],
                "id": ids if good else torch.tensor([PADDING]),
                "weight": torch.full((len(ids),), 1.0 if good else 0.0),
                "bad": [(names[i], bad_rows[i]) for i in wanted if i in bad_rows],
                "start": self.features.start,
            }

    def _take(self, view: int, ids: Tensor) -> Tensor:
        """The features (B, …) of these images."""
        rows, layout = self.features.rows[view], self.features.entries[view].layout
        if self.features.on_device:
            taken = rows.index_select(0, ids.pin_memory().to(rows.device, non_blocking=True))
        else:
            taken = torch.empty(
                len(ids), layout.stride, dtype=torch.uint8, pin_memory=self.features.pin_memory
            )
            torch.index_select(rows, 0, ids, out=taken)
        return layout.from_bytes(taken)
