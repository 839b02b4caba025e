"""``timm``: a folder with config.json and model.safetensors that ``timm.create_model`` takes.

A network of torchvision is one of timm's too where timm has one of that name with the same tensors
and the same outputs, which is looked at each time: ResNets and DenseNets, for instance, are; VGG,
ConvNeXt, ViT and EfficientNet have other names in timm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tl.atomic import write_json_atomically
from tl.data.transforms import normalise
from tl.errors import UserError
from tl.export.check import TOLERANCE, Reader
from tl.export.needs import needs
from tl.export.plain import Staged, check_plain, library_of
from tl.export.wish import Wish
from tl.models import tensor_files
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing
from tl.models.saved import SavedModel

FILE = "model.safetensors"


def write(model: SavedModel, folder: Path, wish: Wish) -> None:
    """Write config.json and model.safetensors.

    Raises:
        UserError: timm is missing, or has no such network.
    """
    check_plain(model.network, wish.format)
    needs("timm", f"--to {wish.format}")
    theirs = in_timm(model.network)
    if theirs is None:
        raise UserError(
            f"timm has no {model.network.architecture} with the tensors and outputs of "
            "torchvision's. --to safetensors is for torchvision itself, --to onnx and --to "
            "torch-export for those without either; a run with model.name=timm:NAME can always be "
            "exported to timm"
        )
    write_folder(*theirs, model, folder)


def write_folder(network: Any, arguments: dict[str, Any], model: SavedModel, folder: Path) -> None:
    """Write what timm reads, for a network of timm."""
    p, own = model.preprocessing, dict(network.pretrained_cfg)
    kept = ("first_conv", "classifier", "fixed_input_size", "pool_size")
    config = {
        "architecture": own.get("architecture") or model.network.architecture,
        "num_classes": len(model.classes),
        "num_features": network.num_features,
        "label_names": model.classes,
        "model_args": arguments,
        "pretrained_cfg": {
            **{key: own[key] for key in kept if own.get(key) is not None},
            "num_classes": len(model.classes),
            "input_size": [p.channels, p.crop_size, p.crop_size],
            "mean": p.mean,
            "std": p.std,
            "interpolation": "nearest" if p.interpolation == "nearest-exact" else p.interpolation,
            "crop_pct": crop_share(p),
            "crop_mode": "center",
        },
    }
    tensor_files.write(tensor_files.copies(network.state_dict()), folder / FILE)
    write_json_atomically(folder / "config.json", config)


def crop_share(preprocessing: Preprocessing) -> float:
    """The share that timm divides the crop by, and rounds down, to get the size to resize to."""
    crop, resize = preprocessing.crop_size, preprocessing.resize_size
    share = crop / resize
    while math.floor(crop / share) < resize:  # 224 / (224 / 232) is a little less than 232
        share = math.nextafter(share, 0)
    return share


def in_timm(network: Network) -> tuple[nn.Module, dict[str, Any]] | None:
    """The network as timm's, in eval mode, and its arguments beyond the number of classes.

    None, if timm has none that computes the same.
    """
    given = {key: value for key, value in network.arguments.items() if key != "num_classes"}
    if library_of(network) == "timm":
        given = {"in_chans" if k == "in_channels" else k: v for k, v in given.items()}
        return network.model, given
    timm = needs("timm", "--to timm")
    if not timm.is_model(network.architecture):
        return None
    theirs = timm.create_model(network.architecture, num_classes=network.arguments["num_classes"])
    state = network.model.state_dict()
    own = theirs.state_dict()
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
        return None
    theirs.load_state_dict(state)
    theirs.eval()
    return (theirs, {}) if _same(network, theirs) else None


@torch.inference_mode()
def _same(network: Network, other: nn.Module) -> bool:
    """Whether both give the same logits for noise."""
    noise = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    ours, theirs = Staged(network).eval()(noise), other(noise)
    difference = (ours - theirs).abs().max()
    return bool(difference <= TOLERANCE * ours.abs().max().clamp(min=1))


def read(folder: Path, model: SavedModel) -> Reader:
    """The folder's network, as timm makes it."""
    network = needs("timm", "--to timm").create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda pixels: network(normalise(pixels, model.preprocessing))


def own_view(folder: Path) -> Callable[[Image.Image], Tensor]:
    """From an RGB image to the input (channels, S, S), as timm prepares it."""
    timm = needs("timm", "--to timm")
    network = timm.create_model(f"local-dir:{folder}")
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return lambda image: transform(image.convert(mode))


def snippet(model: SavedModel, wish: Wish) -> list[str]:
    """Lines of Python that load it and say what is on image.jpg."""
    mode = "L" if model.preprocessing.channels == 1 else "RGB"
    return [
        "import timm, torch",
        "from PIL import Image",
        "model = timm.create_model('local-dir:.', pretrained=True).eval()",
        "view = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        f"images = view(Image.open('image.jpg').convert({mode!r}))[None]",
        "with torch.inference_mode():",
        "    probabilities = model(images).softmax(1)[0].tolist()",
        "print(dict(zip(model.pretrained_cfg['label_names'], probabilities)))",
    ]
