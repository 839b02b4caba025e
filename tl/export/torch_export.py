"""``torch-export``: the graph as `torch.export` sees it, of any batch size, with its weights."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch

from tl.atomic import write_bytes_atomically, write_json_atomically
from tl.data.transforms import normalise
from tl.errors import UserError
from tl.export.check import Reader
from tl.export.described import config_of
from tl.export.plain import Staged
from tl.export.snippet import view_lines
from tl.export.wish import Wish
from tl.models.saved import SavedModel

FILE = "model.pt2"


def write(model: SavedModel, folder: Path, wish: Wish) -> None:
    """Write model.pt2 and config.json.

    Raises:
        UserError: torch cannot trace the network.
    """
    file = io.BytesIO()  # torch's own writer takes a full disk for an error of its own
    torch.export.save(program(model), file)
    write_bytes_atomically(folder / FILE, [file.getbuffer()])
    write_json_atomically(folder / "config.json", config_of(model))


def program(model: SavedModel) -> torch.export.ExportedProgram:
    """The network's graph from normalised images (N, channels, S, S) to logits, for any N >= 1."""
    side = model.preprocessing.crop_size
    # Two images: of one, the graph would be for one.
    example = torch.zeros(2, model.network.in_channels, side, side)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                Staged(model.network).float().eval(),
                (example,),
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            )
    except Exception as error:  # tracing fails in as many ways as there are networks
        first = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"torch {torch.__version__} cannot trace {model.network.architecture}: "
            f"{type(error).__name__}: {first[:300]}. --to safetensors has its weights alone"
        ) from error


def read(folder: Path, model: SavedModel) -> Reader:
    """The folder's graph."""
    graph = torch.export.load(folder / FILE).module()
    return lambda pixels: graph(normalise(pixels, model.preprocessing))


def snippet(model: SavedModel, wish: Wish) -> list[str]:
    """Lines of Python that load it and say what is on image.jpg."""
    return [
        "import json",
        "import torch",
        "from PIL import Image",
        "from torchvision.transforms import v2",
        "config = json.load(open('config.json', encoding='utf-8'))",
        f"model = torch.export.load('{FILE}').module()  # unpickles: only of those you trust",
        *view_lines(model.preprocessing),
        "with torch.inference_mode():",
        "    probabilities = model(images).softmax(1)[0].tolist()",
        "print(dict(zip(config['classes'], probabilities)))",
    ]
