"""What a saved model is to those who know nothing of this project.

A network of torchvision or timm is that library's own, by its own names, as long as it was neither
cut (`model.reuse`) nor given a bottleneck. Weights that came from somewhere else (a graft), and
adapters (LoRA), which a run merges as their phase ends, make no difference.
"""

from __future__ import annotations

import warnings
from typing import Any

import torchvision
from torch import Tensor, nn

from tl.errors import UserError, printable
from tl.models import timm_models
from tl.models.network import Network
from tl.models.saved import SavedModel
from tl.models.stages import run


class Staged(nn.Module):
    """A network's stages in a row: normalised images (N, channels, S, S) to logits (N, C)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model = network.model
        self.stages = network.stages

    def forward(self, images: Tensor) -> Tensor:
        return run(self.stages, self.model, images)


def check_plain(network: Network, to: str) -> None:
    """Raise UserError unless the network is one that its library builds by itself."""
    given, what = network.arguments, None
    if "kept_stages" in given:
        what = f"its first {given['kept_stages']} stages under a new head"
    elif "bottleneck" in given:
        what = f"one with a bottleneck of {given['bottleneck']}"
    elif "in_channels" in given and not timm_models.is_timm(network.architecture):
        what = f"one for images of {given['in_channels']} channels"
    if what is not None:
        raise UserError(
            f"--to {to} is for networks that a library builds by their names, and this "
            f"{network.architecture} is {what}. Formats that hold the graph itself take it: "
            "--to onnx or --to torch-export"
        )


def library_of(network: Network) -> str:
    """torchvision or timm."""
    return "timm" if timm_models.is_timm(network.architecture) else "torchvision"


def build(network: Network) -> nn.Module:
    """The network as its library builds it, with random weights and in training mode."""
    name, keywords = _call(network)
    if library_of(network) == "timm":
        return timm_models.library(network.architecture).create_model(name, **keywords)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, that a future default may be another
        model = torchvision.models.get_model(name, **keywords)
    if network.arguments.get("final_relu") is False:
        model.classifier[2] = nn.Identity()
    return model


def builder(network: Network) -> list[str]:
    """The lines of Python that do what `build` does, and call it ``model``."""
    name, keywords = _call(network)
    given = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in keywords.items())])
    if library_of(network) == "timm":
        return [f"model = timm.create_model({given})"]
    lines = [f"model = torchvision.models.get_model({given})"]
    if network.arguments.get("final_relu") is False:
        lines.append("model.classifier[2] = torch.nn.Identity()  # no ReLU on the logits")
    return lines


def _call(network: Network) -> tuple[str, dict[str, Any]]:
    """The name and the arguments that a library builds the network by."""
    renamed = {"in_channels": "in_chans"} if library_of(network) == "timm" else {}
    keywords = {
        renamed.get(key, key): tuple(value) if isinstance(value, list) else value
        for key, value in network.arguments.items()
        if key != "final_relu"
    }
    return network.architecture.removeprefix(timm_models.PREFIX), keywords


def described(model: SavedModel) -> str:
    """The network in a few words."""
    given = model.network.arguments
    text = printable(model.network.architecture)
    if "kept_stages" in given:
        text += f", its first {given['kept_stages']} stages under a new head"
    if "bottleneck" in given:
        text += f", with a bottleneck of {given['bottleneck']}"
    return text
