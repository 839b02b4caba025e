"""Prediction over all processes: each image once, in the order given, in bounded memory."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tl.config import Config
from tl.data.image_paths import ImagePaths
from tl.data.sampler import PADDING, BatchShares
from tl.data.split import Split
from tl.data.streams import Batch, default_workers, open_stream
from tl.data.transforms import plain_view
from tl.engine import runtime
from tl.engine.inputs import to_network
from tl.engine.prediction_file import Destination, open_output
from tl.engine.prediction_rows import FORMATS, Prediction
from tl.engine.runtime import Runtime
from tl.errors import UserError
from tl.models import saved
from tl.models.saved import SavedModel
from tl.tracking.console import open_console


def predict(
    folder: Path,
    images: ImagePaths,
    to: Destination,
    *,
    top_k: int | None,
    batch_size: int,
    workers: int | None,
    bad_images: str,
) -> None:
    """Write what the model in ``folder`` says of each image.

    Args:
        folder: a run's or a model's.
        top_k: write that many of the most probable classes; all, in their order, if None.
        workers: loader processes; from the cores of the node if None.
        bad_images: ``error``, or ``skip``: an image that cannot be decoded is named and counted.

    Raises:
        UserError: no model, too large a ``top_k``, a bad image, or not one image can be read.
    """
    model = saved.load(folder)
    if top_k is not None and top_k > len(model.classes):
        raise UserError(f"--top-k {top_k}: the model has only {len(model.classes)} classes")
    here = runtime.start(Config())
    names = "\0".join(images.paths).encode(errors="surrogateescape")
    here.check_same("images", hashlib.sha256(names).hexdigest())
    console = open_console(sys.stderr)
    model.network.to(here.device).to(memory_format=torch.channels_last)
    sampler = BatchShares(len(images.paths), batch_size, here.rank, here.world_size)
    if workers is None:  # one batch is read sooner than workers start
        workers = min(default_workers(here.processes_on_node), len(sampler) - 1)
    stream = open_stream(
        Split(images.paths, np.zeros(len(images.paths), np.int64), images.read),
        plain_view(model.preprocessing),
        sampler,
        seed=0,
        size=model.preprocessing.crop_size,
        channels=model.preprocessing.channels,
        decode=images.decode,
        workers=workers,
        pin_memory=here.device.type == "cuda",
    )
    if here.is_main:
        for note in images.notes:
            console.say(f"note: {note}")

    rows = FORMATS[to.format](model.classes, top_k)
    left_out = 0
    with open_output(to, here, rows.encoding_errors) as file:
        if here.is_main:
            file.write(rows.header())
        for batch in stream:
            bad = _of_all(here, batch["bad"])
            left_out += len(bad)
            for _, reason in bad:
                if bad_images == "error":
                    raise UserError(
                        f"cannot decode {reason}. Mend or remove the file, or leave such files out "
                        "with --bad-images skip"
                    )
                if here.is_main:
                    console.say(f"left out, cannot be decoded: {reason}")
            for prediction in _predictions(here, model, batch, images, top_k or 1):
                file.write(rows.row(prediction))
            file.flush()
        if left_out == len(images.paths):
            raise UserError(f"not one of the {left_out:,} images could be read")
    if here.is_main and (to.path is not None or left_out):
        skipped = f", {left_out:,} left out" if left_out else ""
        where = f" to {to.path}" if to.path is not None else ""
        console.say(f"{len(images.paths) - left_out:,} predictions{where}{skipped}")
    runtime.stop()


def _of_all(here: Runtime, bad: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The bad images of all processes' batches, so that they go on, or end, as one."""
    count = torch.tensor(len(bad), device=here.device)
    return here.from_all(bad) if here.all_reduce(count).item() else []


def _predictions(
    here: Runtime, model: SavedModel, batch: Batch, images: ImagePaths, ranks: int
) -> Iterator[Prediction]:
    batch = to_network(batch, here.device, model.preprocessing)
    with torch.inference_mode(), here.accelerator.autocast():
        logits = model.network(batch["image"]).float()
    rankings = logits.argsort(dim=1, descending=True, stable=True)[:, :ranks].tolist()
    probabilities = logits.softmax(1).tolist()
    for i, p, ranking in zip(batch["id"].tolist(), probabilities, rankings, strict=True):
        if i != PADDING:
            yield Prediction(images.paths[i], p, ranking)
