"""Batches of features, in place of the images that they were made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tl.data.features.entry import Entry
from tl.data.sampler import PADDING
from tl.data.split import AnyImages, Split, file_of
from tl.data.streams import Batch, Sampler


@dataclass(frozen=True)
class Features:
    """The features of a split's images: one entry for each of their views."""

    split: AnyImages
    views: int
    """how many views there are of an image; a round takes the one of its number modulo this"""
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
        self._any_bad = any(self._bad.values())
        split = features.split
        self._labels = torch.from_numpy(split.labels) if isinstance(split, Split) else None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for keys in self.sampler:
            wanted = [(number, i) for number, i in keys if i != PADDING]
            bad = []
            if self._any_bad:
                bad = [(i, why) for number, i in wanted if (why := self._why_bad(number, i))]
            good = [key for key in wanted if not self._why_bad(*key)] if bad else wanted
            # A process cannot sit a step out: with nothing to take it gets one row of weight 0.
            rounds, numbers = zip(*(good or [(keys[0][0], 0)]), strict=True)
            ids = torch.tensor(numbers)
            known = {} if self._labels is None else {"label": self._labels[ids]}
            yield {
                **known,
                "image": self._take(rounds, ids),
                "id": ids if good else torch.tensor([PADDING]),
                "round": torch.tensor(rounds),
                "weight": torch.full((len(ids),), 1.0 if good else 0.0),
                "bad": [(file_of(self.features.split, i), why) for i, why in bad],
                "start": self.features.start,
            }

    def _why_bad(self, number: int, i: int) -> str | None:
        """Why an image could not be read, in the view that a round takes; None if it could."""
        return self._bad[number % self.features.views].get(i)

    def _take(self, rounds: Sequence[int], ids: Tensor) -> Tensor:
        """The features (B, …) of these images, each in the view that its round takes."""
        views = [number % self.features.views for number in rounds]
        layout = self.features.entries[views[0]].layout
        if len(set(views)) == 1:
            return layout.from_bytes(self._rows(views[0], ids))
        # Sampled by class, images of one batch are of several rounds.
        places = [[k for k, of in enumerate(views) if of == view] for view in sorted(set(views))]
        taken = torch.cat([self._rows(views[of[0]], ids[of]) for of in places])
        back = torch.tensor([k for of in places for k in of]).argsort()
        return layout.from_bytes(taken[back.to(taken.device)])

    def _rows(self, view: int, ids: Tensor) -> Tensor:
        """The bytes (B, stride) of the features of these images."""
        rows = self.features.rows[view]
        if self.features.on_device:
            return rows.index_select(0, ids.pin_memory().to(rows.device, non_blocking=True))
        taken = torch.empty(
            len(ids), rows.shape[1], dtype=torch.uint8, pin_memory=self.features.pin_memory
        )
        return torch.index_select(rows, 0, ids, out=taken)
