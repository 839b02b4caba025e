"""Features are computed: every process takes its share of the blocks, and one makes them an entry.

A block is the same images on any number of processes, so its features are too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tl.data.features.draft import Draft
from tl.data.features.entry import Block
from tl.data.features.folder import free_bytes, in_words, make_room
from tl.data.features.layout import Layout
from tl.data.split import AnyImages, file_of
from tl.data.streams import Batch
from tl.data.transforms import View
from tl.engine.inputs import to_network
from tl.engine.state import Run
from tl.engine.wishes import stop_agreed

SAY_SECONDS = 30.0
"""between two lines on how far it has come"""

Together = Callable[[Callable[[], object]], object]


@dataclass(frozen=True)
class Wanted:
    """The features of one view of a split's images."""

    split: AnyImages
    view: View
    number: int
    """of the view, where there are several; as the epoch it seeds the augmentation"""
    name: str
    """for people"""
    about: dict[str, Any]
    """all that they follow from"""


@torch.inference_mode()
def features_of(run: Run, images: Tensor) -> Tensor:
    """What the frozen prefix makes of images (N, channels, S, S) on the device."""
    with run.runtime.accelerator.autocast():
        return run.network.features(images, run.network.frozen_prefix)


def make(run: Run, wanted: Wanted, draft: Draft, mates: list[int], together: Together) -> bool:
    """Compute what a draft lacks, and make it an entry. The first of ``mates`` has taken it.

    Args:
        mates: the ranks that share the work, those that see the folder.
        together: does something on all processes and raises on all if one gets an OSError.

    Returns:
        False if the run is to stop before that.
    """
    here, layout, part = run.runtime, draft.layout, mates.index(run.runtime.rank)
    together(lambda: _prepare(run, draft) if part == 0 else None)
    done = draft.finished(part, len(mates), here.threads)
    known = _of_mates(run, mates, done)
    mine = [i for i in range(layout.blocks) if i not in known][part :: len(mates)]
    rounds = max(here.from_all([len(mine)]))

    # All go through as many rounds, so that all can stop between the same two.
    batches, failed, said = _batches(run, wanted, layout, mine), None, time.monotonic()
    for number in range(rounds):
        if number < len(mine) and failed is None:
            try:
                done[mine[number]] = _compute(run, wanted, draft, mine[number], next(batches))
            except OSError as error:
                failed = error
        if stop_agreed(run, "computing features"):
            here.wait()  # nobody is writing any more
            return False
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            run.console.say(f"{wanted.name}: {100 * (number + 1) // rounds} % computed")

    def finish() -> None:
        if failed is not None:
            raise failed
        draft.close()

    together(finish)
    blocks = _of_mates(run, mates, done)
    about = {**wanted.about, "data": run.source.name, "rows": layout.rows}
    together(lambda: draft.complete(blocks, about) if part == 0 else None)
    return True


def _prepare(run: Run, draft: Draft) -> None:
    """Make room for the entry, on the disk and among the others."""
    place, needed = draft.entry.parent, draft.layout.size
    gone = make_room(place, needed, run.config.cache.max_bytes, keep=draft.entry)
    if gone:
        size = in_words(sum(entry.bytes for entry in gone))
        run.console.say(f"cache: {len(gone)} entries deleted, the least recently used, {size}")
    if needed > (free := free_bytes(place) + draft.written_bytes()):
        raise OSError(f"they take {in_words(needed)}, and {in_words(free)} are free in {place}")
    draft.prepare()


def _of_mates(run: Run, mates: list[int], mine: dict[int, Block]) -> dict[int, Block]:
    """The blocks of all that see the same folder."""
    everyone = run.runtime.from_all([(mates[0], number, block) for number, block in mine.items()])
    return {number: block for first, number, block in everyone if first == mates[0]}


def _batches(run: Run, wanted: Wanted, layout: Layout, blocks: list[int]) -> Iterator[Batch]:
    """The images of these blocks, a batch for each."""
    keys = [[(wanted.number, i) for i in layout.rows_of(block)] for block in blocks]
    return iter(run.open_stream(wanted.split, wanted.view, keys) if keys else ())


def _compute(run: Run, wanted: Wanted, draft: Draft, number: int, batch: Batch) -> Block:
    """Compute and write one block.

    Raises:
        OnOneProcessError: an image cannot be decoded, and such are not to be left out.
        OSError: the disk is full.
    """
    run.bad_images.meet(batch["bad"])
    rows, reasons = draft.layout.rows_of(number), dict(batch["bad"])
    files = {i: file_of(wanted.split, i) for i in rows} if reasons else {}
    bad = {i: reasons[file] for i, file in files.items() if file in reasons}
    ids = batch["id"]
    if len(bad) == len(rows):  # what is in the batch then is padding
        ids = ids[:0]
    images = to_network(batch, run.runtime.device, run.preprocessing)["image"][: len(ids)]
    features = features_of(run, images) if len(ids) else torch.zeros(0, *draft.layout.shape)
    return draft.write(number, ids, features, bad)
