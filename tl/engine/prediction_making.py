"""Pieces of a prediction as a process makes them: what the network says of each batch of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tl.data.image_paths import ImagePaths
from tl.data.sampler import PADDING, Key
from tl.data.several_views import several_views, views_in
from tl.data.split import Unlabelled
from tl.data.streams import Batch, default_workers, open_stream
from tl.engine import cam_files
from tl.engine.inputs import to_network
from tl.engine.prediction_features import FeatureFile
from tl.engine.prediction_request import Request
from tl.engine.prediction_rows import Layout, Prediction, Rows
from tl.engine.prediction_work import Pieces, Work
from tl.engine.runtime import Runtime
from tl.errors import OnOneProcessError, printable
from tl.models.grad_cam import grad_cam
from tl.models.pooled import logits_and_pooled
from tl.models.saved import SavedModel

IMAGES_TO_EXPLAIN = 8
"""with gradients an image takes several times the memory"""


@dataclass(frozen=True)
class Asked:
    """What stays the same for all images of a prediction."""

    request: Request
    here: Runtime
    model: SavedModel
    images: ImagePaths
    rows: Rows
    layout: Layout
    stage: str | None
    features: FeatureFile | None


def made(asked: Asked, work: Work, pieces: Pieces, mine: list[int]) -> Iterator[int]:
    """Make pieces, one after another; the images of each batch are counted as they are done."""
    if not mine:
        return
    batches = _batches(asked, pieces, mine)
    for number in mine:
        reasons: list[str] = []
        with work.piece(number) as file:
            for positions in pieces.batches(number):
                for prediction in _predictions(asked, next(batches), positions, reasons):
                    file.write(asked.rows.row(prediction))
                yield len(positions)
            if reasons:
                work.name_bad(number, reasons)
            if asked.features is not None:
                asked.features.sync()


def _batches(asked: Asked, pieces: Pieces, mine: list[int]) -> Iterator[Batch]:
    here, request, images = asked.here, asked.request, asked.images
    preprocessing = asked.model.preprocessing
    sampler = _Sampler(pieces, mine)
    workers = request.workers
    if workers is None:  # one batch is read sooner than workers start
        workers = min(default_workers(here.processes_on_node), len(sampler) - 1)
    stream = open_stream(
        Unlabelled(images.paths, images.read),
        several_views(preprocessing, request.views),
        sampler,
        seed=0,
        size=preprocessing.crop_size,
        channels=preprocessing.channels,
        decode=images.decode,
        workers=workers,
        pin_memory=here.device.type == "cuda",
    )
    return iter(stream)


@dataclass(frozen=True)
class _Sampler:
    """The batches of some pieces."""

    pieces: Pieces
    numbers: list[int]

    def __len__(self) -> int:
        return sum(len(list(self.pieces.batches(number))) for number in self.numbers)

    def __iter__(self) -> Iterator[list[Key]]:
        for number in self.numbers:
            for positions in self.pieces.batches(number):
                yield [(0, i) for i in positions]


def _predictions(
    asked: Asked, batch: Batch, positions: range, reasons: list[str]
) -> Iterator[Prediction]:
    """Those of one batch, in their order; ``reasons`` gets why images could not be decoded."""
    request, paths = asked.request, asked.images.paths
    for _, reason in batch["bad"]:
        if request.bad_images == "error":
            raise OnOneProcessError(
                f"cannot decode {reason}. Mend or remove the file, or leave such files out "
                "with --bad-images skip"
            )
        reasons.append(reason)
    seen = batch["image"]
    batch = to_network(batch, asked.here.device, asked.model.preprocessing)
    ids = [i for i in batch["id"].tolist() if i != PADDING]
    ranking, probabilities, features = _said(asked, batch["image"])
    if asked.features is not None:
        found = np.array(ids, np.int64)
        asked.features.put(positions, found, features[: len(ids)].float().cpu().numpy())
    cams = [""] * len(ids)
    if request.cam is not None and ids:
        cams = _explained(asked, seen, batch["image"], ids, ranking[:, 0])
    good = zip(ids, probabilities.tolist(), ranking.tolist(), cams, strict=False)
    known = {i: Prediction(paths[i], p, best, i, cam) for i, p, best, cam in good}
    bad = iter(batch["bad"])
    for i in positions:
        if i in known:
            yield known[i]
        elif asked.layout.errors:
            name, reason = next(bad)
            why = reason.removeprefix(f"{printable(name)}: ")
            yield Prediction(name, position=i, error=why)


@torch.inference_mode()
def _said(asked: Asked, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the best classes (N, k), probabilities (N, C), features (N, width).

    With several views the latter two are means over them.
    """
    views = views_in(images)
    if asked.request.tta == "flip":
        views.append(images.flip(-1))
    said, found = [], []
    for view in views:
        with asked.here.accelerator.autocast():
            logits, features = logits_and_pooled(asked.model.network, view, asked.stage)
        logits = logits.float()
        said.append(logits.softmax(1))
        found.append(features)
    probabilities = torch.stack(said).mean(0) if len(said) > 1 else said[0]
    # Logits tell apart what probabilities round to the same; of several views there are none.
    by = probabilities if len(said) > 1 else logits
    order = by.argsort(dim=1, descending=True, stable=True)
    return order[:, : asked.layout.top_k or 1], probabilities, torch.stack(found).mean(0)


def _explained(
    asked: Asked, seen: Tensor, images: Tensor, ids: list[int], best: Tensor
) -> list[str]:
    """Write an overlay for each image, of the plain view alone; returns their names."""
    request, classes = asked.request, asked.model.classes
    assert request.cam is not None
    chosen = best.clone()
    if request.cam_class is not None:
        chosen.fill_(classes.index(request.cam_class))
    names = []
    for start in range(0, len(ids), IMAGES_TO_EXPLAIN):
        part = slice(start, start + IMAGES_TO_EXPLAIN)
        plain = views_in(images[part])[0]
        heat = grad_cam(asked.model.network, plain, chosen[part])
        rows = zip(ids[part], views_in(seen[part])[0], heat, chosen[part].tolist(), strict=False)
        for i, view, hot, label in rows:
            names.append(cam_files.file_name(i, asked.images.paths[i], classes[label]))
            cam_files.write(request.cam, names[-1], cam_files.overlay(view, hot))
    return names
