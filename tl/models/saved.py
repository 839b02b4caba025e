"""A model folder, all that predicting needs: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tl.atomic import from_json, sync, to_json, write_text_atomically
from tl.config import DataConfig
from tl.errors import UserError, brief
from tl.models import folders, tensor_files, weight_files, weights, zoo
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing

FORMAT = 1


@dataclass(frozen=True)
class SavedModel:
    """A network with what its outputs and inputs mean: class names in order, preprocessing."""

    network: Network
    classes: list[str]
    preprocessing: Preprocessing


def save(
    network: Network,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    folder: Path,
    state: Mapping[str, Tensor] | None = None,
    data: DataConfig | None = None,
) -> None:
    """Write a model folder; an existing one is replaced, each file in one step.

    Tensors have the names that torchvision, or timm, gives them. ``state`` are copies of the
    network's tensors from another time; without it they are taken now.
    ``data`` are the data keys of the run: which files were images, and what lay behind them.

    Raises:
        UserError: there are not as many class names as classes.
        OSError: the disk is full or not writable; what was there before is intact.
    """
    _check_classes(classes, network.arguments, "the network to save")
    folder.mkdir(parents=True, exist_ok=True)
    state = tensor_files.copies(network.model.state_dict()) if state is None else state
    config = {
        "format": FORMAT,
        "architecture": network.architecture,
        "arguments": network.arguments,
        "classes": list(classes),
        "preprocessing": preprocessing.to_dict(),
        "data": folders.kept(data or DataConfig()),
    }
    partial = folder / ".model.safetensors.partial"
    try:
        tensor_files.write(state, partial)
        _put(partial, folder / "model.safetensors")
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    write_text_atomically(folder / "config.json", to_json(config, indent=2) + "\n")


def load(folder: Path) -> SavedModel:
    """Read a model folder, or the one in a run folder; the network is in eval mode, on the CPU.

    Raises UserError if there is no model, if its format is another, or if its parts do not fit.
    """
    found = folders.model_folder(folder)
    if found is None:
        raise UserError(
            f"{folder} holds no model: expected config.json and model.safetensors in it, or in "
            f"{folder / 'model'}."
        )
    path = found / "config.json"
    config = read_config(path)
    _check_classes(config["classes"], config["arguments"], str(path))
    network = zoo.rebuild(config["architecture"], config["arguments"])
    state = weight_files.read(found / "model.safetensors")
    weights.fit(network, state, str(found), keep_head=True)
    preprocessing = Preprocessing.from_dict(config["preprocessing"])
    if preprocessing.channels != network.in_channels:
        raise UserError(
            f"{path} has a network for images of {network.in_channels} channels, and a mean and "
            f"std of {preprocessing.channels}."
        )
    return SavedModel(network.eval(), config["classes"], preprocessing)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(partial: Path, final: Path) -> None:
    """Rename a file that is wholly on the disk: a reader sees the old one or the new one."""
    sync(partial)
    partial.replace(final)
    sync(final.parent)


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON file: {error}") from error
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise UserError(
            f"{path} has the format {version!r}, and this version reads {FORMAT}. "
            "Use the version of this project that wrote it."
        )
    kinds = {"architecture": str, "arguments": dict, "classes": list, "preprocessing": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    if wrong:
        raise UserError(f"{path} is not complete: {', '.join(wrong)} missing or of a wrong type.")
    classes = config["classes"]
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise UserError(f"{path} has classes that are no names, or two of one name.")
    return config


def _check_classes(classes: Sequence[str], arguments: dict[str, Any], where: str) -> None:
    if len(classes) != arguments.get("num_classes"):
        outputs = brief(arguments.get("num_classes"))
        raise UserError(f"{where} has {outputs} outputs, but {len(classes)} class names.")
