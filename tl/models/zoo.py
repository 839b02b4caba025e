"""Every architecture by its name, with random weights: torchvision's, and ``timm:NAME``.

Nothing here downloads; ``tl.models.weights`` loads what was trained before.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models as tv

from tl.errors import UserError, brief, unknown
from tl.models import bottleneck, channels, reuse, timm_models
from tl.models.families import stages_of
from tl.models.network import Network

# What a builder is always given, besides the number of classes.
_FIXED: dict[str, dict[str, Any]] = {
    # Their published weights expect another normalisation of the input than all others do;
    # transform_input converts, so that images are normalised alike for every architecture.
    # init_weights is torchvision's default, which it warns about when it is not written out.
    name: {"aux_logits": True, "transform_input": True, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}
LARGEST_SIZE = 10_000
"""Side of an image in pixels that a network may be built for; a batch of such takes gigabytes."""

# What a network is built with, and nothing else: the arguments may come from a file, and builders
# take more, such as (timm) a checkpoint to load.
_FLAGS = ("final_relu", "aux_logits", "transform_input", "init_weights")
_MOST = {
    "num_classes": 1_000_000,
    "image_size": LARGEST_SIZE,
    "input_size": LARGEST_SIZE,
    "img_size": LARGEST_SIZE,
    "in_channels": 1000,
    "kept_stages": 1000,
    "bottleneck": 100_000,
}
# Below this size nothing is left to pool for the auxiliary classifier of inception_v3.
_INCEPTION_AUX_SIZE = 299


def architectures() -> list[str]:
    """The names of torchvision's classification networks. Any ``timm:NAME`` is known besides."""
    return tv.list_models(module=tv)


def build(
    architecture: str,
    num_classes: int,
    image_size: int | None = None,
    in_channels: int = 3,
    keep: int | str | None = None,
) -> Network:
    """Build a network with random weights, in training mode.

    ``image_size`` matters to networks that are built for one size (ViT, MaxViT, and timm's of that
    kind), and is checked against the smallest possible one for the others. Below 299 pixels,
    inception_v3 is built without its auxiliary classifier, which cannot train there.

    ``keep`` is how many stages it has before its head, or the name of the last of them, see
    `tl.models.reuse`; None for all. For ``in_channels`` other than 3 see `tl.models.channels`.

    Raises UserError for an unknown architecture, a number of classes or channels below 1, an image
    size or a cut that is not possible, or ``timm:NAME`` where timm is not installed.
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: a network needs at least one class.")
    if timm_models.is_timm(architecture):
        arguments = timm_models.arguments(architecture, num_classes, image_size)
    else:
        check_architecture(architecture)
        arguments = {"num_classes": num_classes, **_FIXED.get(architecture, {})}
        if architecture.startswith("squeezenet"):
            arguments["final_relu"] = False
        if image_size is not None:
            arguments |= _size_arguments(architecture, image_size)
    if in_channels != 3:
        arguments["in_channels"] = in_channels
    network = rebuild(architecture, arguments)
    if keep is not None:
        reuse.cut(network, keep)
    return network


def rebuild(architecture: str, arguments: dict[str, Any]) -> Network:
    """Build the network that ``Network.architecture`` and ``Network.arguments`` describe.

    Raises UserError if the architecture is unknown or does not take the arguments.
    """
    _check_arguments(architecture, arguments)
    ours = ("kept_stages", "bottleneck")
    whole = {key: value for key, value in arguments.items() if key not in ours}
    if timm_models.is_timm(architecture):
        network = timm_models.build(architecture, whole)
    else:
        network = _of_torchvision(architecture, whole)
    if "kept_stages" in arguments:
        reuse.cut(network, arguments["kept_stages"])
    if "bottleneck" in arguments:
        bottleneck.put(network, arguments["bottleneck"])
    return network


def _of_torchvision(architecture: str, arguments: dict[str, Any]) -> Network:
    check_architecture(architecture)
    keywords = dict(arguments)
    final_relu = keywords.pop("final_relu", None)
    in_channels = keywords.pop("in_channels", 3)
    try:
        model = tv.get_model(architecture, weights=None, **keywords)
    except Exception as error:  # builders check little of what they are given
        raise _not_built(architecture, arguments, str(error)) from error
    channels.set_channels(model, in_channels)
    network = Network(model, architecture, dict(arguments), stages_of(model))
    if final_relu is not None:
        set_final_relu(network, final_relu)
    _keep_input(network)
    return network


def check_architecture(architecture: str) -> None:
    """Raise UserError unless this is the name of one of torchvision's networks, or of timm's."""
    if timm_models.is_timm(architecture):
        timm_models.pretrained_config(architecture)
    elif architecture not in architectures():
        raise unknown("architecture", architecture, architectures(), "or timm:NAME, with timm")


def _check_arguments(architecture: str, arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        numbers = value if name == "input_size" and isinstance(value, list) else [value]
        if name in _FLAGS:
            possible = isinstance(value, bool)
        else:
            least = 1 if name in ("in_channels", "bottleneck") else 0
            possible = name in _MOST and all(
                type(n) is int and least <= n <= _MOST[name] for n in numbers
            )
        if not possible:
            reason = f"{brief(name)} cannot be {brief(value)}"
            raise _not_built(architecture, arguments, reason)


def _not_built(architecture: str, arguments: dict[str, Any], reason: str) -> UserError:
    return UserError(f"{architecture} cannot be built with {brief(arguments)}: {reason}")


def set_final_relu(network: Network, on: bool) -> None:
    """Give SqueezeNet's head its final ReLU, or none; recorded in ``network.arguments``.

    SqueezeNet ends in a ReLU, so its logits are never negative. That is right for the published
    weights. A new head can start with all of its logits below zero, and then never gets a gradient
    (seen in one of three seeds with two classes): a new head has no final ReLU.
    """
    network.model.get_submodule("classifier").register_module(
        "2", nn.ReLU(inplace=True) if on else nn.Identity()
    )
    network.arguments["final_relu"] = on


def _keep_input(network: Network) -> None:
    """Let the head's dropout not work in place: what a stage is given may be a cached tensor."""
    for name in network.stages[-1].steps:
        if isinstance(name, str):
            module = network.model.get_submodule(name)
            if isinstance(module, nn.Dropout):
                module.inplace = False


def _size_arguments(architecture: str, size: int) -> dict[str, Any]:
    """What the builder is told of the image size; UserError if it is not possible."""
    if architecture.startswith("vit_"):
        patch = int(architecture.rpartition("_")[2])
        _check_multiple(architecture, size, patch, "its patch size")
        return {"image_size": size}
    if architecture.startswith("maxvit"):
        # Four times halved after a stem that halves, then parted into 7 x 7 windows.
        _check_multiple(architecture, size, 224, "its window of 7 after five halvings")
        return {"input_size": [size, size]}
    smallest = 1
    # Swin's min_size is the size it was trained at; it pads its windows, so any size is possible.
    if not architecture.startswith("swin"):
        smallest = min(tv.get_model_weights(architecture).DEFAULT.meta["min_size"])
    if architecture == "inception_v3" and smallest <= size < _INCEPTION_AUX_SIZE:
        return {"aux_logits": False}
    if size < smallest:
        raise UserError(
            f"image_size {size} is too small for {architecture}: it needs at least {smallest}."
        )
    return {}


def _check_multiple(architecture: str, size: int, unit: int, what: str) -> None:
    if size < unit or size % unit:
        below = max(size // unit, 1) * unit
        raise UserError(
            f"image_size {size} is not possible with {architecture}: it must be a multiple of "
            f"{unit} ({what}). Use {below} or {below + unit}."
        )
