"""Published weights by their names: torchvision's and timm's; what they are, fetching them."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision import models as tv
from torchvision.models import WeightsEnum

from tl.errors import UserError, unknown
from tl.models import pins, timm_models, weight_files
from tl.models.zoo import check_architecture
from tl.paths import is_weights_path

# What a download can fail with: urllib's errors and timeouts are OSErrors.
_NO_DOWNLOAD = (OSError, http.client.HTTPException)


def entry(architecture: str, weights: str) -> WeightsEnum:
    """The entry of torchvision for weights such as "DEFAULT" or "imagenet1k_v1".

    Raises UserError for an unknown name; it lists the architecture's own.
    """
    check_architecture(architecture)
    members = tv.get_model_weights(architecture).__members__
    name = weights.rpartition(".")[2].upper()  # ResNet18_Weights.DEFAULT is understood too
    if name not in members:
        raise unknown(f"weights for {architecture}", weights, members, "and no such file")
    return members[name]


def cache_file(architecture: str, weights: str) -> Path:
    """Where torch.hub keeps, or would keep, the file of torchvision's weights."""
    url = entry(architecture, weights).url
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def kept_file(architecture: str, weights: str) -> Path | None:
    """The file of published weights that is loaded without a download; None: it is not here."""
    if not timm_models.is_timm(architecture):
        file = cache_file(architecture, weights)
        return file if file.is_file() else None
    _check_timm_name(architecture, weights)
    return _timm_file(timm_models.pretrained_config(architecture))


def _timm_file(config: dict[str, Any]) -> Path | None:
    """Where the Hub's library, or torch.hub, keeps what a config of timm's is about."""
    if not (hub := config.get("hf_hub_id")):
        name = Path(urlparse(config.get("url") or "").path).name
        file = Path(torch.hub.get_dir()) / "checkpoints" / name
        return file if name and file.is_file() else None
    from huggingface_hub import try_to_load_from_cache  # a dependency of timm

    repository, _, revision = hub.partition("@")
    given = config.get("hf_hub_filename") or "pytorch_model.bin"
    # In the order in which timm looks for them.
    safe = ["model.safetensors"] if given == "pytorch_model.bin" else []
    safe += [f"{given[:-4]}.safetensors"] if given.endswith(".bin") else []
    for name in [*safe, given]:
        found = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def is_cached(architecture: str, weights: str | None) -> bool:
    """Whether ``weights`` can be loaded without a download; true for None and for paths."""
    if weights is None or is_weights_path(weights):
        return True
    return kept_file(architecture, weights) is not None


def download(architecture: str, weights: str | None) -> None:
    """Fetch published weights into the cache; does nothing for None, paths and what is cached.

    For one process of a node, before the others call ``load``. Raises UserError as ``fetch`` does.
    """
    if not is_cached(architecture, weights) and weights is not None:
        if timm_models.is_timm(architecture):
            _fetch_timm(architecture, {})
        else:
            fetch(architecture, weights, {})


def fetch(architecture: str, weights: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Names and tensors of published weights, from the cache or else downloaded into it.

    ``arguments`` are the network's: timm fits weights to an image size itself. Raises UserError if
    there are no such weights, if they cannot be downloaded, or if they are not what was pinned
    (`tl.models.pins`).
    """
    if timm_models.is_timm(architecture):
        _check_timm_name(architecture, weights)
        return _fetch_timm(architecture, arguments)
    chosen = entry(architecture, weights)
    file = cache_file(architecture, weights)
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except _NO_DOWNLOAD as error:
            raise not_downloaded(architecture, weights, str(error)) from error
        except RuntimeError as error:  # torch.hub's "invalid hash value": cut short or altered
            raise not_downloaded(architecture, weights, str(error)) from error
        pins.check(file)
        return weight_files.state_dict(state, chosen.url)
    pins.check(file)
    return weight_files.read(file)


def not_downloaded(architecture: str, weights: str, reason: str) -> UserError:
    """The error for weights that are not there and could not be, or must not be, downloaded."""
    if timm_models.is_timm(architecture):
        config = timm_models.pretrained_config(architecture)
        hub = config.get("hf_hub_id")
        what = f"https://huggingface.co/{hub}" if hub else str(config.get("url"))
        mend = "Download its model.safetensors where there is a network"
    else:
        what = entry(architecture, weights).url
        mend = (
            "Download it where there is a network, and put it at "
            f"{cache_file(architecture, weights)}"
        )
    return UserError(
        f"weights {weights!r} for {architecture} are not here and were not downloaded from {what} "
        f"({reason}). {mend}, or give it with model.weights=/path/to/file, or train from random "
        "weights with model.weights=null."
    )


def _check_timm_name(architecture: str, weights: str) -> None:
    """timm names its weights in the architecture: timm:resnet50.a1_in1k has one DEFAULT."""
    if weights.upper() != "DEFAULT":
        known = timm_models.library(architecture).list_pretrained(
            architecture.removeprefix(timm_models.PREFIX).partition(".")[0] + ".*"
        )
        names = ", ".join(timm_models.PREFIX + name for name in known)
        raise UserError(
            f"unknown weights {weights!r} for {architecture}: timm names them in the architecture "
            f"({names or 'it has none'}), with the weights 'DEFAULT'."
        )


def _fetch_timm(architecture: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    timm = timm_models.library(architecture)
    config = timm_models.pretrained_config(architecture)
    if not config.get("hf_hub_id") and not config.get("url") and not config.get("file"):
        raise UserError(
            f"timm has no weights for {architecture}. Use model.weights=null or a file."
        )
    name = architecture.removeprefix(timm_models.PREFIX)
    # With the classes, channels and stages that the weights have: load makes them fit.
    ours = ("num_classes", "in_channels", "kept_stages", "bottleneck")
    keywords = {key: value for key, value in arguments.items() if key not in ours}
    file = _timm_file(config)
    if file is not None and pins.check(file) and not config.get("custom_load"):
        # The very file that was pinned: the Hub may have another one by now.
        keywords["pretrained_cfg_overlay"] = {"file": str(file)}
    try:
        # timm reads a Hub's .bin file with weights_only=True, and safetensors where there are any.
        model = timm.create_model(name, pretrained=True, **keywords)
    except (*_NO_DOWNLOAD, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise not_downloaded(
            architecture, "DEFAULT", reason[0] if reason else type(error).__name__
        ) from error
    if file is None and (file := _timm_file(config)) is not None:
        pins.check(file)  # there may be a pin from when it was here before
    return dict(model.state_dict())
