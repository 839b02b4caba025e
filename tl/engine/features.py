"""Cached features for a run: found and verified, or computed by all processes together.

Everything here is called by all processes alike. Those that see the same cache folder work on the
same entry; on nodes with a disk of their own each node makes its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import PIL
import torch
import torchvision

from tl import __version__
from tl.atomic import to_json
from tl.cache_folder import cache_folder
from tl.data.features.batches import Features
from tl.data.features.draft import Draft
from tl.data.features.entry import FORMAT, Entry, open_entry
from tl.data.features.fingerprint import fingerprint
from tl.data.features.folder import discard, in_words
from tl.data.features.layout import Layout
from tl.data.split import AnyImages
from tl.data.transforms import View
from tl.engine.feature_making import Wanted, features_of, make
from tl.engine.runtime import Runtime
from tl.engine.state import Run

T = TypeVar("T")


class NotKept(Exception):
    """There will be no cached features, and why; all processes are told alike."""


def load_or_compute(
    run: Run,
    split: AnyImages,
    part: str,
    augmented: bool,
    view: View,
    views: int,
    needed: list[int],
) -> Features | None:
    """The features of images, at the end of the frozen prefix.

    Args:
        part: what to call them: ``training``, ``validation``, ``target``, …
        augmented: the view is that of training.
        views: of so many of each image,
        needed: these are wanted, by number.

    Returns:
        None if they cannot be kept, for a reason that has been said, or if the run is to stop
        before all are computed: those that are done wait for whoever computes the others.
    """
    here = run.runtime
    place = cache_folder(run.config.cache) / "features"
    title = f"features of {len(split):,} {part} images"
    entries: dict[int, Entry] = {}
    try:
        mates = _mates(here, place)
        run.watchdog.mark(f"after step {run.progress.step}, looking at the files of images")
        about = _about(run, augmented) | {
            "images": fingerprint(split, here.rank, here.world_size, here.from_all)
        }
        for number in needed:
            name = title + (f", view {number + 1} of {views}" if views > 1 else "")
            of_view = about | ({"view": number} if views > 1 else {})
            entry = _entry(run, Wanted(split, view, number, name, of_view), place, mates)
            if entry is None:
                break
            entries[number] = entry
        else:
            return _opened(run, split, views, entries)
    except NotKept as why:
        run.console.say(f"{title} are not kept: {why}")
    for entry in entries.values():
        entry.close()
    return None


def _about(run: Run, augmented: bool) -> dict[str, Any]:
    """What features follow from, besides the images. The key of an entry is a hash of it."""
    network, phase = run.network, run.phases[run.progress.phase]
    prefix = network.stages[: network.frozen_prefix]
    transform = run.preprocessing.to_dict()
    if augmented and phase.augment != "none":
        transform |= {"augment": phase.augment, "crop_scale": list(phase.crop_scale)}
        transform |= {"seed": run.config.seed}
    tensors = run.progress.frozen  # hashed already, for the proof that they do not move
    owned = sorted(name for name in tensors if any(stage.owns_name(name) for stage in prefix))
    weights = "\n".join(f"{name} {tensors[name]}" for name in owned)
    return {
        "format": FORMAT,
        "architecture": network.architecture,
        "arguments": {k: v for k, v in network.arguments.items() if k != "num_classes"},
        "cut": prefix[-1].name,
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
        "transform": transform,
        "background": list(run.config.data.background),
        "decode": run.config.data.decode,
        "precision": run.runtime.precision,
        "device": run.runtime.device.type,
        "versions": [__version__, torch.__version__, torchvision.__version__, PIL.__version__],
    }


def _mates(here: Runtime, place: Path) -> list[int]:
    """The ranks that see the same folder as this process, in order."""
    token = f".{here.from_main(os.urandom(8).hex())}."
    mine = place / f"{token}{here.rank}"

    def leave_token() -> None:
        place.mkdir(parents=True, exist_ok=True)
        mine.touch()

    _together(here, leave_token)
    mates = sorted(int(path.name.removeprefix(token)) for path in place.glob(f"{token}*"))
    here.wait()
    mine.unlink(missing_ok=True)
    return mates


def _entry(run: Run, wanted: Wanted, place: Path, mates: list[int]) -> Entry | None:
    """One entry, found or made; None if the run is to stop before it is whole."""
    here, began = run.runtime, time.perf_counter()
    path = place / hashlib.sha256(to_json(wanted.about).encode()).hexdigest()[:32]
    if entry := _verified(run, path, mates):
        run.console.say(f"{wanted.name}: kept from before, {in_words(entry.layout.size)}")
        return entry
    draft = Draft(path, _layout(run, wanted))
    with _taken(run, draft, mates, wanted.name):
        # Another run may have made it while this one waited.
        if entry := _verified(run, path, mates):
            run.console.say(f"{wanted.name}: made by another run meanwhile")
            return entry
        if not make(run, wanted, draft, mates, lambda work: _together(here, work)):
            return None
    entry = open_entry(path)
    if not all(here.from_all([entry is not None])):
        raise NotKept(f"{path} is gone")
    assert entry is not None
    speed = len(wanted.split) / (time.perf_counter() - began)
    run.console.say(
        f"{wanted.name}: computed at {speed:.0f} images/s, {in_words(entry.layout.size)}"
    )
    return entry


def _verified(run: Run, path: Path, mates: list[int]) -> Entry | None:
    """The entry, if all processes find one there and it is what was written."""
    here = run.runtime
    entry = open_entry(path)
    if all(here.from_all([entry is not None])):
        assert entry is not None
        run.watchdog.mark(f"after step {run.progress.step}, verifying cached features")
        whole = here.from_all([entry.is_whole(mates.index(here.rank), len(mates), here.threads)])
        if all(whole):
            return entry
        if here.rank == mates[0] and not all(whole[rank] for rank in mates):
            run.console.say(f"cached features are damaged, and computed again: {path}")
            discard(path)
    if entry is not None:
        entry.close()
    here.wait()
    return None


def _layout(run: Run, wanted: Wanted) -> Layout:
    """How the features lie on the disk, by sending two empty images through the prefix."""
    size = run.preprocessing.crop_size
    images = torch.zeros(2, run.network.in_channels, size, size, device=run.runtime.device)
    features = features_of(run, images.contiguous(memory_format=torch.channels_last))
    return Layout.of(features, len(wanted.split))


@contextlib.contextmanager
def _taken(run: Run, draft: Draft, mates: list[int], name: str) -> Iterator[None]:
    """Be who makes an entry while the block runs, after whoever makes it now."""
    here, is_first = run.runtime, run.runtime.rank == mates[0]
    waits = False
    try:
        while not all(_together(here, lambda: not is_first or draft.take(seconds=1.0))):
            draft.let_go()  # of several nodes with a folder each, all wait or all go on
            run.watchdog.mark(f"after step {run.progress.step}, waiting for another run's features")
            if not waits:
                run.console.say(f"{name}: another run is computing them; waiting for it")
                waits = True
        yield
    finally:
        draft.close()
        draft.let_go()


def _together(here: Runtime, work: Callable[[], T]) -> list[T]:
    """Do ``work`` on every process, and return what each of them got.

    Raises:
        NotKept: it failed on any of them, with an OSError.
    """
    result: list[T] = []
    error = ""
    try:
        result = [work()]
    except OSError as failed:
        place = f"{failed.filename}: " if failed.filename else ""
        error = f"{place}{failed.strerror or failed}"
    if errors := [error for error in here.from_all([error]) if error]:
        raise NotKept(errors[0])
    return here.from_all(result)


def _opened(run: Run, split: AnyImages, views: int, entries: dict[int, Entry]) -> Features:
    """Entries as the loop reads them: on the GPU where they leave most of it free."""
    device = run.runtime.device
    rows = {view: entry.rows() for view, entry in entries.items()}
    if device.type == "cuda":
        size = sum(entry.layout.size for entry in entries.values())
        if size < torch.cuda.mem_get_info(device)[0] / 4:
            rows = {view: tensor.to(device) for view, tensor in rows.items()}
    start, pin = run.network.frozen_prefix, device.type == "cuda"
    return Features(split, views, entries, rows, start, pin)
