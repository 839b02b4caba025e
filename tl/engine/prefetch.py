"""Fetch the weights that a config names, and pin those that are published; see `tl.models.pins`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tl.arguments import Loaded
from tl.errors import UserError
from tl.mistakes import blamed_on
from tl.models import folders, pins, published, weight_files, zoo
from tl.paths import is_weights_path


class Fetched(NamedTuple):
    """A weights file of a config's."""

    name: str
    """as the config has it; of published weights with the architecture"""
    sha256: str
    path: Path
    pinned: bool
    """published weights are; a file of the user's own is his to change"""
    note: str = ""
    """what of it should be known"""


def prefetch(loaded: Loaded) -> list[Fetched]:
    """Every weights file that a run of this config reads; what is not here yet is downloaded.

    Raises:
        UserError: no such architecture, weights or file, no network, a download or a file that is
            not what was pinned, or a pin that cannot be written.
    """
    model = loaded.config.model
    with blamed_on(loaded.origins, "model", "name"):
        zoo.check_architecture(model.name)
    found = []
    if model.weights is not None:
        with blamed_on(loaded.origins, "model", "weights"):
            own = is_weights_path(model.weights)
            found.append(
                own_file(model.weights, model.weights_key)
                if own
                else _published(model.name, model.weights)
            )
    for wish in model.reuse.graft:
        with blamed_on(loaded.origins, "model", "reuse", "graft"):
            found.append(own_file(wish.weights, wish.weights_key))
    return found


def own_file(weights: str, key: str | None = None) -> Fetched:
    """A file, a run's folder or a model folder, of which it can at least be told what it holds.

    Raises:
        UserError: there is none, or it holds no weights.
    """
    path = Path(weights).expanduser()
    folder = folders.model_folder(path)
    file = folder / "model.safetensors" if folder else path
    weight_files.read(file, key)
    return Fetched(weights, pins.sha256(file), file, pinned=False)


def _published(architecture: str, weights: str) -> Fetched:
    published.fetch(architecture, weights, {})  # from the cache, if they are there
    file = published.kept_file(architecture, weights)
    if file is None:
        raise UserError(
            f"weights {weights!r} for {architecture} were downloaded, but not to where they are "
            "looked for: they cannot be pinned. Give the file with model.weights=FILE."
        )
    # torchvision's names end in the first digits of the sha256, which a download is checked
    # against; a file that was put there by hand was not.
    digest = pins.pin(file)
    named = re.search(r"-([0-9a-f]{8,64})$", file.stem)
    note = ""
    if named and not digest.startswith(named[1]):
        note = (
            f"{file} was not downloaded from torchvision: the sha256 of what is published under "
            f"that name begins with {named[1]}. It is pinned as it is; if you did not put it "
            f"there, delete it and its pin, and fetch it again"
        )
    return Fetched(f"{architecture} {weights}", digest, file, True, note)
