"""A trained run, model folders and images: what the tests of the formats share."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from launch import export, train
from tl.data.transforms import normalise, plain_view
from tl.models import saved, zoo
from tl.models.preprocessing import preprocessing_of, with_image_size

CLASSES = ["ant", "bee", "Käfer, groß"]
TOLERANCE = 2e-5
"""Of probabilities in float32, of two programs; nothing else differs."""

RUN = [
    "data.source=digits",
    "data.image_size=64",
    "data.max_train=16",
    "data.max_val=12",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=8",
    "tracking.trackers=[jsonl]",
    "phases=[{name: adapt, train: 'lora(2)', epochs: 2, optimizer: {lr: 0.01}}]",
]


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained adapters (LoRA) of SqueezeNet on digits."""
    folder = tmp_path_factory.mktemp("export") / "digits"
    with contextlib.redirect_stdout(io.StringIO()):
        assert train.main([*RUN, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images in folders of the three classes, and one more beside them."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    for i in range(12):
        path = folder / CLASSES[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    return folder


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 75), Image.Resampling.BICUBIC)


def save_model(
    folder: Path, architecture: str, size: int = 64, classes: Sequence[str] = CLASSES, **more: Any
) -> Path:
    """A model folder of random weights whose logits say something of an image."""
    torch.manual_seed(0)
    network = zoo.build(architecture, len(classes), size, **more)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "layer_scale" in name:  # ConvNeXt's begin at 1e-6, and no block would count
                parameter.fill_(0.5)
            elif not parameter.any():  # ViT's head begins at 0, and all logits would be equal
                parameter.normal_(std=0.1)
    preprocessing = with_image_size(preprocessing_of(architecture, None), size)
    view = plain_view(preprocessing)
    x = normalise(torch.stack([view(picture(seed)) for seed in range(50, 66)]), preprocessing)
    give_statistics(network, x)
    saved.save(network, classes, preprocessing, folder)
    return folder


def give_statistics(network: nn.Module, x: Tensor) -> None:
    """Statistics of BatchNorm as after training: with those of a new one, values fade away."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(x)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):  # a small one would magnify rounding
                buffer.clamp_(min=0.1)
    network.eval()


def tl_export(*words: object) -> int:
    return export.main([str(word) for word in words])


def probabilities(folder: Path, image: Image.Image) -> dict[str, float]:
    """What the run's own model says of an image, by plain torch."""
    model = saved.load(folder)
    with torch.inference_mode():
        x = normalise(plain_view(model.preprocessing)(image)[None], model.preprocessing)
        values = model.network(x).softmax(1)[0].tolist()
    return dict(zip(model.classes, values, strict=True))


def said_by_the_card(folder: Path, image: Image.Image) -> dict[str, float]:
    """What the Python of the card prints, run word for word in the exported folder."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
    image.save(folder / "image.jpg", "PNG")  # Pillow goes by content; a JPEG would lose something
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    os.unlink(folder / "image.jpg")  # noqa: PTH108
    return eval(printed.getvalue())
