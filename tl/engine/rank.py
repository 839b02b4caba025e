"""Which network, or which cut of one, suits a data set: scores of its training images' features.

One pass over the images gives the features of all cuts of a network, and all processes share it;
the main one keeps the features and scores them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl.arguments import Loaded
from tl.atomic import to_json, write_text_atomically
from tl.data.split import Source
from tl.data.streams import BadImages
from tl.engine import run_dir, runtime
from tl.engine.image_features import image_features
from tl.engine.prepare import describe_weights, load_network, open_images
from tl.engine.runtime import Runtime
from tl.engine.score import share_bad_images
from tl.errors import UserError
from tl.models.network import Network
from tl.models.pooled import cuts_of
from tl.models.preprocessing import Preprocessing
from tl.tracking.console import ConsoleTracker, open_console
from tl.tracking.tables import table
from tl.transferability import knn_accuracy, logme

Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A network with weights, and the cuts that are looked at."""

    name: str
    """as it was given"""
    weights: str | None
    network: Network
    preprocessing: Preprocessing
    cuts: list[str]


def rank(
    loaded: Loaded,
    *,
    models: Sequence[str] = (),
    cuts: str | None = None,
    neighbours: int = 5,
    batch_size: int = 64,
    output: Path | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Score candidates on the training images, and show them from the best to the worst.

    Args:
        models: ``NAME`` or ``NAME=WEIGHTS``; the config's own network if there are none.
        cuts: see `cuts_of`.
        neighbours: of each image, for the accuracy of nearest neighbours.
        output: a file to write the result to, as JSON.
        as_json: print the result as JSON, and all that is said to standard error.

    Returns:
        The result: ``rows`` by falling ``logme``, and what they are of.

    Raises:
        UserError: no such network, weights or stage, or too few images or classes.
    """
    here = runtime.start(loaded.config)
    screen = sys.stderr if as_json else None
    console = open_console(screen if here.is_main else run_dir.nowhere())
    console.say(here.describe())
    source, _ = open_images(loaded, here, console)
    _check_images(source.train.labels, neighbours, source.name)
    candidates = [
        _candidate(each, text, cuts, source, here, console)
        for text, each in _each_loaded(loaded, models)
    ]
    bad_images = BadImages(loaded.config.data.bad_images, loaded.config.data.max_bad_images)
    rows: list[Row] = []
    for candidate in candidates:
        images = f"{len(source.train):,} images"
        console.say(f"{candidate.name}: features of {images} behind {', '.join(candidate.cuts)}")
        rows += _scores(loaded, candidate, source, here, neighbours, batch_size, bad_images)
    for reason in sorted(bad_images.reasons.values()):
        console.say(f"left out, cannot be decoded: {reason}")
    rows.sort(key=lambda row: -row["logme"])
    result = {
        "data": source.name,
        "classes": list(source.classes),
        "images": len(source.train) - len(bad_images.reasons),
        "neighbours": neighbours,
        "rows": rows,
    }
    here.on_main(lambda: _write(output, result))
    if as_json:
        if here.is_main:
            print(to_json(result, indent=2))
    else:
        _show(console, result)
    if output is not None:
        console.say(f"written: {output}")
    runtime.stop()
    return result


def _check_images(labels: np.ndarray, neighbours: int, name: str) -> None:
    """Raise UserError unless there is something to tell apart, and enough of it."""
    if (classes := len(np.unique(labels))) < 2:
        raise UserError(
            f"{name} has training images of {classes} class; to tell features apart takes two"
        )
    if len(labels) <= neighbours:
        raise UserError(
            f"--neighbours {neighbours}: there are {len(labels)} training images, so at most "
            f"{len(labels) - 1} others"
        )


def _each_loaded(loaded: Loaded, models: Sequence[str]) -> Iterator[tuple[str, Loaded]]:
    """The config with each candidate for its network, and what to call it.

    Raises:
        UserError: one of them has no name, or is there twice.
    """
    own = loaded.config.model
    if not models:
        yield own.name, loaded
        return
    for position, text in enumerate(models):
        name, equals, weights = text.partition("=")
        if not name or (equals and not weights):
            raise UserError(f"--models {text!r}: give NAME or NAME=WEIGHTS, with commas between")
        if text in models[:position]:
            raise UserError(f"--models names {text} twice")
        chosen = None if weights == "null" else weights or "DEFAULT"
        model = own.model_copy(update={"name": name, "weights": chosen})
        place = f"--models {text}"
        origins = {**loaded.origins, ("model", "name"): place, ("model", "weights"): place}
        config = loaded.config.model_copy(update={"model": model})
        yield text, replace(loaded, config=config, origins=origins)


def _candidate(
    loaded: Loaded,
    text: str,
    cuts: str | None,
    source: Source,
    here: Runtime,
    console: ConsoleTracker,
) -> Candidate:
    # Whatever head the weights have, features are taken before it.
    model = loaded.config.model.model_copy(update={"head": "new"})
    loaded = replace(loaded, config=loaded.config.model_copy(update={"model": model}))
    network, preprocessing, report = load_network(loaded, source, here)
    console.say(f"{text}: {describe_weights(report)}")
    return Candidate(text, model.weights, network, preprocessing, cuts_of(network, cuts))


def _scores(
    loaded: Loaded,
    candidate: Candidate,
    source: Source,
    here: Runtime,
    neighbours: int,
    batch_size: int,
    bad_images: BadImages,
) -> list[Row]:
    """A row for each cut of a candidate, the same on every process."""
    started = time.perf_counter()
    network, preprocessing = candidate.network, candidate.preprocessing
    images, cuts = source.train, candidate.cuts
    ids, features = image_features(
        loaded.config, network, preprocessing, images, cuts, here, batch_size, bad_images
    )
    share_bad_images(here, bad_images)
    all_ids = here.to_main(ids)
    seconds = time.perf_counter() - started
    rows = []
    for cut in candidate.cuts:
        parts = here.to_main(features.pop(cut))

        def row(cut: str = cut, parts: list[Tensor] = parts) -> Row:
            began = time.perf_counter()
            order = torch.cat(all_ids).argsort()
            x = torch.cat(parts)[order]
            labels = torch.from_numpy(source.train.labels)[torch.cat(all_ids)[order]]
            _check_images(labels.numpy(), neighbours, "what could be decoded")
            if not x.isfinite().all():
                raise UserError(
                    f"{candidate.name}: the output of {cut} is not finite for some images. Give "
                    "mixed_precision=no, or other weights"
                )
            return {
                "network": candidate.name,
                "weights": candidate.weights,
                "cut": cut,
                "logme": logme(x, labels),
                "knn_accuracy": knn_accuracy(x, labels, neighbours),
                "width": x.shape[1],
                "seconds": seconds + time.perf_counter() - began,
            }

        rows.append(here.on_main(row))
    return rows


def _write(output: Path | None, result: dict[str, Any]) -> None:
    if output is None:
        return
    try:
        write_text_atomically(output, to_json(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to --output {output}: {error.strerror}") from error


def _show(console: ConsoleTracker, result: dict[str, Any]) -> None:
    title = (
        f"{result['data']}: {result['images']:,} training images, LogME and leave-one-out accuracy "
        f"of the {result['neighbours']} nearest neighbours by cosine"
    )
    columns = ["network", "cut", "LogME", "kNN accuracy", "width", "seconds"]
    keys = ["network", "cut", "logme", "knn_accuracy", "width", "seconds"]
    console.show(table(title, columns, [[row[key] for key in keys] for row in result["rows"]]))
