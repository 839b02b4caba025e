"""torchvision's own classification data sets, as ``torchvision:NAME``.

Their constructors differ: some take ``train``, some ``split``, some have no parts. What a
signature cannot tell stands in `PARTS` and `ARGUMENTS`.
"""

from __future__ import annotations

import fcntl
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from PIL import Image

from tl.config import DataConfig
from tl.data.images import BadImage, read_rgb
from tl.data.split import Source, Split, hold_out
from tl.errors import UserError, unknown

# Values of `split` to train and to validate on, where they are not "train" and "test". An
# official validation part goes before the test part, which is for one last look.
PARTS = {
    "CLEVRClassification": ("train", "val"),
    "Country211": ("train", "valid"),
    "DTD": ("train", "val"),
    "FGVCAircraft": ("train", "val"),
    "Flowers102": ("train", "val"),
    "ImageNet": ("train", "val"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "PCAM": ("train", "val"),
    "Places365": ("train-standard", "val"),
    "RenderedSST2": ("train", "val"),
}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "EMNIST": {"split": "balanced"},
    "FakeData": {"size": 200, "image_size": (3, 32, 32)},  # to try things out, so small
}

# They unpickle, unchecked, a list that they expect in the working folder; and have no labels.
# (CIFAR unpickles too, but only files of known sums.)
RUN_CODE = ("LSUN", "LSUNClass")


def named(name: str) -> partial[Source]:
    """The source ``torchvision:name``: a function ``(data, seed) -> Source``.

    Raises:
        UserError: torchvision has no such data set, or it runs code that it finds in a file.
    """
    if name in RUN_CODE:
        raise UserError(
            f"data.source torchvision:{name} is not supported: it reads a pickle, which can run"
            " code. Save its images into a folder for each class"
        )
    known = [
        known
        for known in torchvision.datasets.__all__
        if inspect.isclass(getattr(torchvision.datasets, known))
    ]
    if name not in known:
        raise unknown("torchvision data set", name, known, where="data.source")
    return partial(_open, name)


def _open(name: str, data: DataConfig, seed: int) -> Source:
    kind = getattr(torchvision.datasets, name)
    title = f"torchvision:{name}"
    datasets = _construct(kind, data.labelled_root)
    labels = [_labels(dataset, title) for dataset in datasets]
    classes, labels = _classes(datasets[0], labels)
    parts = ("train/", "val/") if len(datasets) == 2 else ("",)
    splits = []
    for part, dataset, label in zip(parts, datasets, labels, strict=True):
        names = [f"{name}/{part}{i:06d}" for i in range(len(dataset))]
        read = _ReadDataset(dataset, names, tuple(data.background))
        splits.append(Split(names, label, read))
    if len(splits) == 1:
        splits = list(hold_out(splits[0], data.val_fraction, seed))
    return Source(title, tuple(classes), splits[0], splits[1])


def _construct(kind: type, data_root: str | None) -> list[Any]:
    """The data set's two parts, or its only one; downloaded to ``data_root`` if it is not there."""
    name = kind.__name__
    parameters = _parameters(kind)
    calls = [{**part, **ARGUMENTS.get(name, {})} for part in _parts(name, parameters)]
    needed = {key for key, value in parameters.items() if value.default is value.empty}
    if extra := needed - {"root", *calls[0]}:
        raise UserError(
            f"data.source torchvision:{name} is not supported: it needs {', '.join(sorted(extra))}."
            " Write a function (data, seed) -> Source and name it as package.module:name"
        )
    if "root" not in parameters:
        return [kind(**call) for call in calls]
    if data_root is None:
        raise UserError(
            f"data.source torchvision:{name} needs data.root: the folder where its files are,"
            " or to which they are downloaded"
        )
    root = Path(data_root).expanduser()
    failures = (ImportError, OSError, RuntimeError, ValueError, EOFError)
    offline = {"download": False} if "download" in parameters else {}
    if offline:
        with suppress(OSError):  # a read-only place may hold the files all the same
            root.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(root, fcntl.LOCK_SH):
            return [kind(root=str(root), **call, **offline) for call in calls]
    except failures as error:
        if not offline:
            raise UserError(
                f"torchvision:{name} is not complete in data.root {root}, and torchvision does"
                f" not download it: {_line(error)}"
            ) from error
    try:
        with _lock(root, fcntl.LOCK_EX):  # a process that comes later finds what this one fetched
            return [kind(root=str(root), **call, download=True) for call in calls]
    except failures as error:
        raise UserError(
            f"torchvision:{name} is not complete in data.root {root} and cannot be downloaded:"
            f" {_line(error)}. On a machine with a network, run in an empty folder"
            f' python -c "from torchvision.datasets import {name}; {_code(name, calls)}"'
            f" and copy what it leaves there to {root}"
        ) from error


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters, with those of the bases to which it passes ``**kwargs``."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        own = dict(list(inspect.signature(base.__init__).parameters.items())[1:])  # type: ignore[misc]
        passes_on = [key for key, value in own.items() if value.kind is value.VAR_KEYWORD]
        found = {**own, **found}
        if not passes_on:
            break
        del found[passes_on[0]]
    return found


def _parts(name: str, parameters: dict[str, inspect.Parameter]) -> list[dict[str, Any]]:
    if "train" in parameters:
        return [{"train": True}, {"train": False}]
    if "split" in parameters:
        return [{"split": part} for part in PARTS.get(name, ("train", "test"))]
    return [{}]


def _code(name: str, calls: list[dict[str, Any]]) -> str:
    """Python that downloads these parts to the working directory."""
    statements = []
    for call in calls:
        everything = {"root": ".", **call, "download": True}
        arguments = ", ".join(f"{key}={value!r}" for key, value in everything.items())
        statements.append(f"{name}({arguments})")
    return "; ".join(statements)


@contextmanager
def _lock(root: Path, mode: int) -> Iterator[None]:
    """Shared to look, exclusive to download: so no process sees what another is unpacking.

    Without a lock where there can be none: in a read-only folder, to which nothing can be
    downloaded either, and on file systems that know no locks.
    """
    try:
        file = (root / ".torchvision.lock").open("a")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, mode)
        yield


def _labels(dataset: Any, title: str) -> np.ndarray:
    """(N,) int64, from where torchvision keeps them; reads every image if it keeps them nowhere."""
    lists = [getattr(dataset, key, None) for key in ("targets", "labels", "_labels", "y")]
    pairs = [getattr(dataset, key, None) for key in ("_samples", "samples")]
    lists += [[pair[1] for pair in found] for found in pairs if found is not None]
    for found in lists:
        if found is not None and len(found) == len(dataset):
            labels = np.asarray(found)
            if labels.ndim == 1 and labels.dtype.kind in "iu":
                return labels.astype(np.int64)
    labels = np.asarray([dataset[i][1] for i in range(len(dataset))])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"data.source {title} has no label for each image: it cannot be classified")
    return labels.astype(np.int64)


def _classes(dataset: Any, labels: list[np.ndarray]) -> tuple[list[str], list[np.ndarray]]:
    """Names of the classes, and the labels as positions in them."""
    found = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    values = np.unique(np.concatenate(labels))
    if found is None or not 0 <= values[0] <= values[-1] < len(found):
        return list(map(str, values)), [np.searchsorted(values, label) for label in labels]
    names = [name if isinstance(name, str) else ", ".join(name) for name in found]
    # ImageNet has two classes "crane": the bird and the machine.
    unique = [
        f"{name} ({position})" if names.count(name) > 1 else name
        for position, name in enumerate(names)
    ]
    return unique, labels


@dataclass(frozen=True, eq=False)
class _ReadDataset:
    dataset: Any
    names: list[str]
    background: tuple[int, ...]

    def __call__(self, index: int) -> Image.Image:
        name = self.names[index]
        try:
            image = self.dataset[index][0]
        except Exception as error:  # torchvision's loaders are Pillow's, which raise many kinds
            raise BadImage(name, _line(error)) from error
        red, green, blue = self.background
        return read_rgb(image, (red, green, blue), name)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
