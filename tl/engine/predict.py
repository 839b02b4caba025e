"""Prediction over all processes: each image once, in the order given, in bounded memory.

The images are cut into pieces (`tl.engine.prediction_work`), of which each process takes every
so-many-th. No process waits for another until the end, and then the main one alone, for the pieces
of the others. A batch holds the same images however many processes there are, so the network says
the same of them (to the last bit, on the same kind of device with as many CPU threads).
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tl.atomic import sync
from tl.config import Config
from tl.data.image_paths import ImagePaths, open_images
from tl.engine import prediction_features, runtime
from tl.engine.prediction_features import FeatureFile
from tl.engine.prediction_making import Asked, made
from tl.engine.prediction_request import Listing, Request, partial_features
from tl.engine.prediction_rows import FORMATS, Layout
from tl.engine.prediction_work import Pieces, Work, write_all
from tl.engine.runtime import Runtime
from tl.errors import PeerFailed, UserError, unknown
from tl.models import folders, saved
from tl.models.pooled import feature_stage, logits_and_pooled
from tl.models.saved import SavedModel
from tl.tracking.console import ConsoleTracker, open_console

BATCH_SIZES = {"cpu": 64, "cuda": 256}
SECONDS_BETWEEN_LINES = 30.0
SECONDS_WITHOUT_NEWS = 1800.0


def predict(request: Request, listing: Listing) -> None:
    """Write what the model in ``request.model`` says of each image.

    Args:
        listing: the work folder and the images; the main process's are everybody's.

    Raises:
        UserError: no model, an option that does not fit it, a bad image, not one image can be read,
            or a part of another prediction is in the way.
    """
    model = saved.load(request.model)
    layout = _layout(request, model.classes)
    stage = feature_stage(model.network, request.features_from) if request.features else None
    if request.cam_class is not None and request.cam_class not in model.classes:
        raise unknown("class", request.cam_class, model.classes, "--cam-class")
    here = runtime.start(Config(mixed_precision=request.mixed_precision))
    images, work = _listed(here, request, listing)
    model.network.to(here.device).to(memory_format=torch.channels_last)
    batch_size = request.batch_size or BATCH_SIZES.get(here.device.type, 64)
    pieces = Pieces.of(len(images.paths), batch_size, as_they_come=request.output is None)
    here.on_main(lambda: work.begin(_job(here, request, model, images, pieces, layout)))
    work.key, done = here.from_main((work.key, work.done()))
    features = None
    if request.features is not None:
        features = _feature_file(here, request.features, model, stage, pieces, done)
    rows = FORMATS[request.format](model.classes, layout)
    asked = Asked(request, here, model, images, rows, layout, stage, features)
    mine = [number for number in range(len(pieces)) if number not in done]
    with work.telling_of_failure():
        makes = made(asked, work, pieces, mine[here.rank :: here.world_size])
        if here.is_main:
            _join(asked, work, pieces, done, makes)
        else:
            for _ in makes:
                pass
    if features is not None:
        features.close()
    runtime.stop()


def _layout(request: Request, classes: Sequence[str]) -> Layout:
    top_k = request.top_k
    if top_k is not None and top_k > len(classes):
        raise UserError(f"--top-k {top_k}: the model has only {len(classes)} classes")
    return Layout(
        probabilities=request.probabilities,
        top_k=top_k,
        threshold=request.threshold,
        features=request.features is not None,
        cam=request.cam is not None,
        errors=request.bad_images == "row",
    )


def _listed(here: Runtime, request: Request, listing: Listing) -> tuple[ImagePaths, Work]:
    if here.processes_on_node < here.world_size and request.output is None:
        raise UserError("on several nodes, give --output: a file in a folder that all of them see")
    data = folders.data_of(request.model)

    def place() -> tuple[Path, str]:
        images, work = listing.made()
        return work.folder, images.sha256

    folder, sha256 = here.on_main(place)
    if here.is_main:
        return listing.made()
    return open_images(folder, data, sha256), Work(folder, lasting=request.output is not None)


def _job(
    here: Runtime,
    request: Request,
    model: SavedModel,
    images: ImagePaths,
    pieces: Pieces,
    layout: Layout,
) -> dict[str, Any]:
    """All that the rows follow from, by what to call it in a message."""
    folder = folders.model_folder(request.model)
    assert folder is not None  # it was loaded from there
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        digest.update(saved.sha256(folder / name).encode())
    return {
        "model": digest.hexdigest(),
        "list of images": images.sha256,
        "number of images": len(images.paths),
        "--format": request.format,
        "--top-k": layout.top_k,
        "--probabilities": layout.probabilities,
        "--threshold": layout.threshold,
        "--batch-size": pieces.batch_size,
        "--bad-images row": layout.errors,
        "--features": str(request.features) if request.features else None,
        "--features-from": request.features_from,
        "--tta": request.tta,
        "--cam": str(request.cam.absolute()) if request.cam else None,
        "--cam-class": request.cam_class,
        "--mixed-precision": here.precision,
        "images of a piece": pieces.size,
    }


def _feature_file(
    here: Runtime,
    final: Path,
    model: SavedModel,
    stage: str | None,
    pieces: Pieces,
    done: set[int],
) -> FeatureFile | None:
    """The file of features, made if it is not there; None if there is nothing more to write."""
    side, channels = model.preprocessing.crop_size, model.preprocessing.channels
    with torch.inference_mode():
        nothing = torch.zeros(1, channels, side, side, device=here.device)
        width = logits_and_pooled(model.network, nothing, stage)[1].shape[1]
    file, shape = partial_features(final), (pieces.images, width)

    def make() -> None:
        if not done:
            prediction_features.create(file, final.suffix.lower(), shape)
        elif len(done) < len(pieces) and not file.exists():
            raise UserError(
                f"{file} is gone, and with it features of images that are done. Start anew with "
                "--overwrite"
            )

    here.on_main(make)
    if len(done) == len(pieces):  # then it may have its name already
        return None
    return FeatureFile(file, final.suffix.lower(), shape)


def _join(asked: Asked, work: Work, pieces: Pieces, done: set[int], makes: Iterator[int]) -> None:
    """On the main process: make its own pieces, and join all as they come."""
    request, console = asked.request, open_console(sys.stderr)
    for note in asked.images.notes:
        console.say(f"note: {note}")
    if done:
        count = sum(len(p) for number in done for p in pieces.batches(number))
        console.say(f"goes on: {count:,} of {pieces.images:,} images were done")
    joined = work.folder / "joined"
    descriptor = (
        os.open(joined, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        if request.output is not None
        else sys.stdout.fileno()
    )
    try:
        write_all(descriptor, asked.rows.header())
        left_out = _copied(asked, work, pieces, makes, descriptor, console)
        if request.output is not None:
            os.fsync(descriptor)
    finally:
        if request.output is not None:
            os.close(descriptor)
    none = left_out == pieces.images
    if request.output is not None and not (none and not asked.layout.errors):
        if request.features is not None:
            with suppress(FileNotFoundError):  # it was done before a crash
                partial_features(request.features).replace(request.features)
                sync(request.features.parent)
        joined.replace(request.output)
        sync(request.output.parent)
    work.end()
    if none:
        raise UserError(f"not one of the {left_out:,} images could be read")
    if request.output is not None or left_out:
        what = "with an error" if asked.layout.errors else "left out"
        where = f" to {request.output}" if request.output is not None else ""
        skipped = f", {left_out:,} {what}" if left_out else ""
        console.say(f"{pieces.images - left_out:,} predictions{where}{skipped}")


def _copied(
    asked: Asked,
    work: Work,
    pieces: Pieces,
    makes: Iterator[int],
    descriptor: int,
    console: ConsoleTracker,
) -> int:
    """Write all pieces to an open file, each as soon as it is there; returns the bad images."""
    what = "has an error" if asked.layout.errors else "left out"
    began = said = news = time.monotonic()
    mine = number = left_out = 0
    while number < len(pieces):
        count = next(makes, 0)
        mine += count
        while number < len(pieces) and work.has(number):
            for reason in work.bad(number):
                console.say(f"{what}, cannot be decoded: {reason}")
                left_out += 1
            work.copy(number, descriptor)
            number, news = number + 1, time.monotonic()
        now = time.monotonic()
        if now - said > SECONDS_BETWEEN_LINES:
            said, there = now, min(number * pieces.size, pieces.images)
            rate = mine / (now - began)
            each = " in this process" if asked.here.world_size > 1 else ""
            console.say(f"{there:,} of {pieces.images:,} images, {rate:,.1f}/s{each}")
        if not count and number < len(pieces):
            if work.has_failed:
                raise PeerFailed
            if now - news > SECONDS_WITHOUT_NEWS:
                raise UserError(
                    "nothing has come of the other processes for half an hour. End them, and give "
                    "the same command again to go on"
                )
            time.sleep(0.05)
    return left_out
