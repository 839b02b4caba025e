"""A saved model on labelled images: evaluate it over all processes, show and write the results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tl.atomic import to_json, write_text_atomically
from tl.cache_folder import cache_folder
from tl.data.folder import labelled
from tl.data.sampler import EvaluationSampler
from tl.data.sources import open_source
from tl.data.split import Source, Split
from tl.data.streams import BadImages, default_workers, open_stream
from tl.data.transforms import plain_view
from tl.engine import runtime
from tl.engine.evaluate import Evaluation, evaluate
from tl.engine.evaluation_request import Request
from tl.engine.runtime import Runtime
from tl.errors import OnOneProcessError, UserError, unknown
from tl.metrics import per_class
from tl.models import folders, saved
from tl.models.saved import SavedModel
from tl.tracking.confusion_plot import plot_confusion
from tl.tracking.console import ConsoleTracker, open_console
from tl.tracking.tables import table

MOST_ROWS = 40
"""Of more classes than that the table shows this many, those of lowest F1."""


def score(asked: Request) -> dict[str, Any]:
    """Evaluate a model, and return what ``evaluation.json`` holds.

    Raises:
        UserError: no model, no data, classes that the model does not know, or a bad image.
    """
    model = saved.load(asked.model)
    here = runtime.start(asked.config)
    name, split, notes = here.first_on_each_node(lambda: open_data(asked, model.classes))
    with Path(os.devnull).open("w") as nowhere:
        console = open_console(None if here.is_main else nowhere)
        for note in notes:
            console.say(f"note: {note}")
        console.say(f"{name}: {len(split):,} images · {here.describe()}")
        result, left_out = measure(asked, model, split, here)
        for reason in sorted(left_out.values()):
            console.say(f"left out, cannot be decoded: {reason}")
        report = {
            "model": str(asked.model),
            "model_sha256": _sha256(asked.model),
            "data": name,
            **_report(result, model.classes),
            "bad_images": dict(sorted(left_out.items())),
        }
        if here.is_main:
            _write(asked.output, report, result)
        _show(console, report, asked.output)
    here.wait()
    runtime.stop()
    return report


def measure(
    asked: Request, model: SavedModel, split: Split, here: Runtime
) -> tuple[Evaluation, dict[str, str]]:
    """Evaluate a model on labelled images, over all processes.

    Returns the result, and by name why an image was left out.

    Raises:
        UserError: a bad image, if such are not to be left out.
    """
    data = asked.config.data
    stream = open_stream(
        split,
        plain_view(model.preprocessing),
        EvaluationSampler(len(split), asked.batch_size, here.rank, here.world_size),
        seed=asked.config.seed,
        size=model.preprocessing.crop_size,
        channels=model.preprocessing.channels,
        decode=data.decode,
        workers=default_workers(here.processes_on_node) if data.workers is None else data.workers,
        pin_memory=here.device.type == "cuda",
    )
    bad_images = BadImages(data.bad_images, data.max_bad_images)
    network = model.network.to(here.device).to(memory_format=torch.channels_last)
    result = evaluate(here, network, model.preprocessing, stream, len(model.classes), bad_images)
    assert result is not None, "nothing stops it"
    share_bad_images(here, bad_images)
    return result, bad_images.reasons


def open_data(asked: Request, classes: Sequence[str]) -> tuple[str, Split, Sequence[str]]:
    """The name of the data, its images labelled by ``classes``, and notes for the user."""
    index = cache_folder(asked.config.cache) / "index"
    if asked.folder is not None:
        split, notes = labelled(asked.folder, classes, asked.config.data, index)
        return str(asked.folder), split, notes
    if not asked.config.data.has_source:
        raise UserError(
            "the run had a target and nothing labelled, so it has no validation images. Give a "
            "folder with a folder of images for each class"
        )
    source = open_source(asked.config.data, asked.config.seed, index)
    return f"validation data of {source.name}", _relabelled(source, classes), source.notes


def _relabelled(source: Source, classes: Sequence[str]) -> Split:
    """The source's validation images, with its classes found by name among the model's."""
    for name in source.classes:
        if name not in classes:
            raise unknown("class", name, classes, where=f"in {source.name}")
    positions = np.array([classes.index(name) for name in source.classes], dtype=np.int64)
    return replace(source.val, labels=positions[source.val.labels])


def share_bad_images(here: Runtime, bad_images: BadImages) -> None:
    """Tell every process of the bad images that any has met."""
    met = here.from_all(list(bad_images.reasons.items()))
    try:
        bad_images.meet(met)
    except OnOneProcessError as error:  # by now all processes know
        raise UserError(str(error)) from None


def _sha256(model: Path) -> str:
    folder = folders.model_folder(model)
    assert folder is not None  # it was loaded from there
    return saved.sha256(folder / "model.safetensors")


def _report(result: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    rows = zip(classes, per_class(result.confusion), strict=True)
    return {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "images": result.images,
        "per_class": [{"class": name, **numbers} for name, numbers in rows],
        "classes": list(classes),
        "confusion": result.confusion.tolist(),
    }


def _write(output: Path, report: dict[str, Any], result: Evaluation) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_text_atomically(output / "evaluation.json", _as_json(report))
        plot_confusion(result.confusion.numpy(), report["classes"], output / "confusion_matrix.png")
    except OSError as error:
        raise UserError(f"cannot write to --output {output}: {error.strerror}") from error


def _as_json(report: dict[str, Any]) -> str:
    """Readable by people too: each key on a line, and of what is a list each item."""
    lines = []
    for key, value in report.items():
        text = to_json(value)
        if isinstance(value, list) and value and isinstance(value[0], list | dict):
            text = "[\n    " + ",\n    ".join(map(to_json, value)) + "\n  ]"
        lines.append(f"  {to_json(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _show(console: ConsoleTracker, report: dict[str, Any], output: Path) -> None:
    rows, title = report["per_class"], ""
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: row["f1"])[:MOST_ROWS]
        title = f"the {MOST_ROWS} of {len(report['per_class']):,} classes with the lowest F1"
    columns = ["class", "precision", "recall", "f1", "images"]
    console.show(table(title, columns, [[row[key] for key in columns] for row in rows]))
    bad = f", {len(report['bad_images']):,} left out" if report["bad_images"] else ""
    console.say(
        f"accuracy {report['accuracy']:.4f}  loss {report['loss']:.4f}  "
        f"{report['images']:,} images{bad}"
    )
    console.say(f"written: {output / 'evaluation.json'} and confusion_matrix.png")
