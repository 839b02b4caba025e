"""`tl export`: write, load afresh, compare, and only then give the folder its name."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from tl.atomic import write_json_atomically, write_text_atomically
from tl.cores import cores_of_node
from tl.data.images import read_rgb
from tl.data.streams import BadImages
from tl.errors import OnOneProcessError, UserError
from tl.export import (
    card,
    check,
    huggingface,
    int8,
    onnx,
    safetensors,
    timm,
    torch_export,
)
from tl.export.check import Comparison, Reader
from tl.export.facts import facts_of
from tl.export.folder import staged
from tl.export.images import Images, open_images, read_all
from tl.export.wish import RESULT, Wish
from tl.models import folders, saved
from tl.models.saved import SavedModel
from tl.tracking.console import ConsoleTracker, open_console
from tl.tracking.tracker import CONFIG


class Format(Protocol):
    """What a file of a format has."""

    def write(self, model: SavedModel, folder: Path, wish: Wish) -> None:
        """Write the model; UserError if the format cannot hold it."""

    def read(self, folder: Path, model: SavedModel) -> Reader:
        """Load what was written, by the other program's own means."""

    def snippet(self, model: SavedModel, wish: Wish) -> list[str]:
        """Lines of Python for the card."""


WRITERS: dict[str, Format] = {
    "safetensors": safetensors,
    "onnx": onnx,
    "torch-export": torch_export,
    "timm": timm,
    "huggingface": huggingface,
}
OWN_VIEWS: dict[str, Callable[[Path], Callable[[Image.Image], Tensor]]] = {
    "timm": timm.own_view,
    "huggingface": huggingface.own_view,
}
"""formats whose program prepares images by itself"""


def export(wish: Wish) -> dict[str, Any]:
    """Export a model, and return what ``export.json`` holds.

    Raises:
        UserError: no model, a format that cannot hold it, no images to check it on, more than
            rounding between the two, more lost to int8 than is allowed, or a full disk.
    """
    torch.set_num_threads(cores_of_node())
    console = open_console()
    model = saved.load(wish.asked.model)
    images = open_images(wish.asked, model.classes, wish.num_images)
    if not images.labelled and wish.max_accuracy_loss is not None:
        raise UserError("--max-accuracy-loss needs images with labels: folders named by class")
    for note in images.notes:
        console.say(f"note: {note}")
    form = WRITERS[wish.format]
    with staged(wish.output, wish.overwrite) as folder:
        console.say(f"writing {card.described(model)} for {wish.format}")
        form.write(model, folder, wish)
        found = _measured(model, wish, folder, images, console)
        facts = facts_of(wish.asked)
        text = card.card(model, wish, facts, found, form.snippet(model, wish))
        write_text_atomically(folder / "README.md", text)
        if wish.asked.run is not None and (wish.asked.run / CONFIG).is_file():
            shutil.copyfile(wish.asked.run / CONFIG, folder / card.TRAINING)
        result = _result(wish, found, folder)
        write_json_atomically(folder / RESULT, result)
    console.say(f"exported to {wish.output}: {', '.join(sorted(result['files']))}")
    return result


@torch.inference_mode()
def _measured(
    model: SavedModel, wish: Wish, folder: Path, images: Images, console: ConsoleTracker
) -> card.Findings:
    """Load what was written, and compare it; UserError if it is something else."""
    data = wish.asked.config.data
    bad = BadImages(data.bad_images, data.max_bad_images)
    try:
        pixels, labels, ids = read_all(images, wish.asked, model.preprocessing, bad)
    except OnOneProcessError as error:
        raise UserError(str(error)) from None
    for reason in sorted(bad.reasons.values()):
        console.say(f"left out, cannot be decoded: {reason}")
    size = wish.asked.batch_size
    ours = check.over(check.original(model), pixels, size)
    if not ours.isfinite().all():
        raise UserError(
            f"the model in {wish.asked.model} gives logits that are no finite numbers for some of "
            "these images: it is of no use anywhere. Look at its run's losses"
        )
    reader = WRITERS[wish.format].read(folder, model)
    theirs = check.over(reader, pixels, size)
    comparison = check.compare(ours, theirs)
    if not comparison.holds:  # such a network may magnify the last digit: then float32 is off, too
        off = check.rounding(model, pixels, ours, size)
        comparison = dataclasses.replace(comparison, rounding=off)
    console.say(f"loaded afresh, {comparison}")
    if not comparison.holds:
        raise UserError(
            f"what was exported does not compute what the run's model does: {comparison}. Nothing "
            "was kept. This is a fault of the exporter, of the other program or of this one; "
            "please report it with the architecture and these numbers. Another --to may do"
        )
    known = labels if images.labelled else None
    right = None if known is None else int((theirs.argmax(1) == known).sum())
    from_files = None
    if wish.format in OWN_VIEWS:
        from_files = _from_files(model, OWN_VIEWS[wish.format](folder), images, ids, ours)
        console.say(
            f"with its own preprocessing: probabilities differ by {from_files.probabilities:.2g} "
            f"at most, the same class for {from_files.same_class:,} of {from_files.images:,}"
        )
    small = None
    if wish.int8:
        small = _small(model, wish, folder, reader, (theirs, pixels), known)
        console.say(f"int8: {small}")
        if small.lost is not None and small.lost > int8.MUCH:
            console.say(f"note: int8 loses {small.lost:.3f} of accuracy")
        if small.images_per_second < small.float_images_per_second:
            console.say("note: on this machine int8 is smaller, and not faster")
    return card.Findings(
        images=images.described,
        comparison=comparison,
        right=right,
        from_files=from_files,
        int8=small,
        versions=_versions(wish.format),
    )


def _from_files(
    model: SavedModel,
    view: Callable[[Image.Image], Tensor],
    images: Images,
    ids: Tensor,
    ours: Tensor,
) -> Comparison:
    """The run's own logits, and those of the same images as another program prepares them."""
    network = check.Staged(model.network).eval()
    found = []
    for part in ids.split(16):
        seen = [view(read_rgb(images.split.read(i))) for i in part.tolist()]
        found.append(network(torch.stack(seen)).float())
    return check.compare(ours, torch.cat(found))


def _small(
    model: SavedModel,
    wish: Wish,
    folder: Path,
    plain: Reader,
    over: tuple[Tensor, Tensor],
    labels: Tensor | None,
) -> int8.Int8:
    """Measure the int8 graph; UserError if it loses more than is allowed."""
    logits, pixels = over
    small = onnx.read(folder, model, onnx.INT8_FILE)
    measured = int8.measure(
        (plain, small),
        (folder / onnx.FILE, folder / onnx.INT8_FILE),
        (logits, check.over(small, pixels, wish.asked.batch_size)),
        pixels,
        labels,
    )
    int8.check_loss(measured, wish.max_accuracy_loss)
    return measured


def _versions(format: str) -> dict[str, str]:
    more: dict[str, Sequence[str]] = {
        "onnx": ("onnx", "onnxruntime"),
        "timm": ("timm",),
        "huggingface": ("transformers",),
    }
    return {
        name: metadata.version(name) for name in ("torch", "torchvision", *more.get(format, ()))
    }


def _result(wish: Wish, found: card.Findings, folder: Path) -> dict[str, Any]:
    """What was exported and measured, for programs; sizes in bytes."""
    source = folders.model_folder(wish.asked.model)
    assert source is not None  # it was loaded from there
    files = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*")}
    return {
        "format": wish.format,
        "model_sha256": saved.sha256(source / "model.safetensors"),
        "with_preprocessing": wish.with_preprocessing,
        "images": found.images,
        "comparison": dataclasses.asdict(found.comparison),
        "allowed": found.comparison.allowed,
        "right": found.right,
        "from_files": None if found.from_files is None else dataclasses.asdict(found.from_files),
        "int8": None if found.int8 is None else dataclasses.asdict(found.int8),
        "versions": found.versions,
        "files": files,
    }
