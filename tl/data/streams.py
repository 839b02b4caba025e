"""A stream of batches for one process: images are read, transformed and stacked by workers."""

from __future__ import annotations

import multiprocessing.process
import os
import signal
import sys
import weakref
from collections.abc import Iterable, Sequence, Sized
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tl.cores import cores_of_node
from tl.data.images import BadImage, Decoded, Size
from tl.data.sampler import PADDING, Key
from tl.data.split import AnyImages, Split, file_of, read_shrunk
from tl.data.transforms import View, seeded
from tl.errors import OnOneProcessError
from tl.heap import keep_little_memory

Batch = dict[str, Any]
"""image (N, channels, S, S) uint8, its colours last in memory; label (N,) int64; id (N,) int64;
round (N,) int64, of each image (see `tl.data.sampler.Key`);
weight (N,) float32, 1, or 0 for padding; and bad: list of (file, reason) of images that could not
be decoded and are left out.

mate (N,) int64, of images: the row of the other image of its pair, places 2i and 2i + 1 of what was
asked for; its own row where that image is not there. Mixing is by this.

Of images without labels (`tl.data.split.Unlabelled`) there is no label. With a target domain its
batch is in the source's, as target, and as strong in another augmentation: see
`tl.objectives.objective.Objective.streams`.

start is 0; or it is the number of the stage that ``image`` goes into, which is then what the stages
before it have made of the images, (N, …) float: see `tl.data.features`."""


Decode = Literal["fast", "exact"]

_LEFT_TO_THE_RUN = {
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTERM,
}


Item = tuple[Tensor | None, int, Key, str]
"""An image, or None; its label; its key; and why it could not be read."""


class Images(Dataset):
    """Images of a split as the network's input. A key is (round, id).

    With ``views`` there are that many views of an image, and rounds take them in turn.
    """

    def __init__(
        self,
        split: AnyImages,
        view: View,
        seed: int,
        size: int,
        decode: Decode,
        views: int | None = None,
        channels: int = 3,
    ) -> None:
        self.split, self.view, self.seed = split, view, seed
        self.size, self.channels = size, channels
        self.decode, self.views = decode, views

    def __getitem__(self, key: Key) -> Item:
        number, i = key
        if i == PADDING:
            return None, 0, key, ""
        view = number % self.views if self.views else number
        try:
            image = self._read(view, i)
        except BadImage as error:
            return None, 0, key, str(error)
        seen = seeded(self.view, image, self.seed, view, i)
        label = int(self.split.labels[i]) if isinstance(self.split, Split) else 0
        return seen, label, key, ""

    def _read(self, view: int, i: int) -> Image.Image | Decoded:
        if self.decode == "exact":
            return self.split.read(i)

        def least(size: Size) -> Size:  # what will be seen, which is a function of the same numbers
            return seeded(self.view.least, size, self.seed, view, i)

        return read_shrunk(self.split.read, i, least)

    def collate(self, items: list[Item]) -> Batch:
        """Stack what could be read. What could not leaves the batch and nothing takes its place."""
        good = [item for item in items if item[0] is not None]
        bad = [(file_of(self.split, i), reason) for _, _, (_, i), reason in items if reason]
        # By places, not rows: an image that is left out must not move others into other pairs.
        places = [place for place, item in enumerate(items) if item[0] is not None] or [0]
        row_of = {place: row for row, place in enumerate(places)}
        # A process cannot sit a step out: with nothing to read it gets one empty image, weight 0.
        rows = good or [(self._empty(), 0, (items[0][2][0], PADDING), "")]
        images, labels, keys, _ = zip(*rows, strict=True)
        rounds, ids = zip(*keys, strict=True)
        known = {"label": torch.tensor(labels)} if isinstance(self.split, Split) else {}
        return {
            **known,
            # Each is a Pillow image, colours last in memory, and `permute` moves nothing.
            "image": torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2),
            "id": torch.tensor(ids),
            "round": torch.tensor(rounds),
            "weight": torch.full((len(rows),), 1.0 if good else 0.0),
            "mate": torch.tensor([row_of.get(place ^ 1, row) for place, row in row_of.items()]),
            "bad": bad,
            "start": 0,
        }

    def _empty(self) -> Tensor:
        return torch.zeros(self.size, self.size, self.channels, dtype=torch.uint8).permute(2, 0, 1)


class Sampler(Iterable[list[Key]], Sized, Protocol):
    """What a stream draws from: for each batch the keys of this process's share."""


def open_stream(
    split: AnyImages,
    view: View,
    sampler: Sampler,
    *,
    seed: int,
    size: int,
    decode: Decode,
    workers: int,
    pin_memory: bool,
    views: int | None = None,
    channels: int = 3,
) -> DataLoader:
    """A loader of this process's batches, one for each item of ``sampler``.

    It is opened once for a phase, so workers do not start again with every epoch, and they read
    ahead over the ends of epochs.
    """
    images = Images(split, view, seed, size, decode, views, channels)
    return _Loader(
        images,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=images.collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_begin_worker,
    )


class _Loader(DataLoader):
    """Its workers begin with the signals held back that they are to leave to the run."""

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_RUN)
        try:
            iterator = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # An error that nobody catches keeps the iterator, whose workers Python then asks to end
        # once, and waits for them. With this it asks twice, see `_leave_signals_to_the_run`.
        weakref.finalize(iterator, _ask_to_end, getattr(iterator, "_workers", []))
        return iterator


def _ask_to_end(workers: Sequence[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.terminate()


def _begin_worker(worker: int) -> None:
    del worker
    keep_little_memory()
    _leave_signals_to_the_run()
    sys.excepthook = _only_what_is_news


def _leave_signals_to_the_run() -> None:
    """Let a loader worker live through the signals that ask the run to stop.

    A terminal and some schedulers send them to every process. The run still needs its workers
    then: it stops between two steps. They end when it tells them to, or is gone.
    """
    for number in _LEFT_TO_THE_RUN - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    terms = []

    def on_term(number: int, frame: object) -> None:
        terms.append(number)
        if len(terms) > 1:  # the run itself insists, after its loader has asked in vain
            os._exit(0)

    signal.signal(signal.SIGTERM, on_term)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_RUN)


def _only_what_is_news(kind: type[BaseException], error: BaseException, where: Any) -> None:
    """In place of `sys.excepthook`, which the thread that hands batches over reports to.

    Ctrl-C may come to a command in the middle of taking a batch. It then says so itself.
    """
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, where)


def default_workers(processes_on_node: int) -> int:
    """Loader workers for each training process: the node's cores, divided, one left to train.

    0 when a process has a single core: a worker would only take turns with it.
    """
    cores = cores_of_node() // max(1, processes_on_node)
    return min(16, max(0, cores - 1))


def batches_in(batch: Batch) -> list[Batch]:
    """The batch itself, and those of other domains in it."""
    return [batch, *(part for part in batch.values() if isinstance(part, dict))]


class BadImages:
    """The bad images met so far, each once: file name -> reason."""

    def __init__(self, policy: str, most: int) -> None:
        self.policy, self.most = policy, most
        self.reasons: dict[str, str] = {}

    def meet(self, bad: list[tuple[str, str]]) -> list[str]:
        """Note what a batch, or another process, left out; returns the files that are new.

        Raises:
            OnOneProcessError: the first one with ``bad_images: error``; more than the cap with
                ``skip``.
        """
        new = []
        for name, reason in bad:
            if self.policy == "error":
                raise OnOneProcessError(
                    f"cannot decode {reason}. Mend or remove the file, or leave such files out "
                    "with data.bad_images=skip."
                )
            if name not in self.reasons:
                self.reasons[name] = reason
                new.append(name)
        if len(self.reasons) > self.most:
            raise OnOneProcessError(
                f"{len(self.reasons)} images cannot be decoded, more than data.max_bad_images="
                f"{self.most}. The last: {next(reversed(self.reasons.values()))}"
            )
        return new
