"""``safetensors``: weights by torchvision's or timm's own names, and a config.json beside them.

The folder is also a model folder of this project: `tl predict` takes it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from tl.atomic import from_json
from tl.data.transforms import normalise
from tl.export.check import Reader
from tl.export.plain import build, builder, check_plain, library_of
from tl.export.snippet import view_lines
from tl.export.wish import Wish
from tl.models import folders, saved
from tl.models.preprocessing import Preprocessing
from tl.models.saved import SavedModel

FILE = "model.safetensors"


def write(model: SavedModel, folder: Path, wish: Wish) -> None:
    """Write config.json and model.safetensors.

    Raises:
        UserError: it is no network that a library builds by its name.
    """
    check_plain(model.network, wish.format)
    data = folders.data_of(wish.asked.model)
    saved.save(model.network, model.classes, model.preprocessing, folder, data=data)


def read(folder: Path, model: SavedModel) -> Reader:
    """The folder's network, by its library alone."""
    network = build(model.network)
    network.load_state_dict(load_file(folder / FILE))
    network.eval()
    p = Preprocessing.from_dict(from_json((folder / "config.json").read_bytes())["preprocessing"])
    return lambda pixels: network(normalise(pixels, p))


def snippet(model: SavedModel, wish: Wish) -> list[str]:
    """Lines of Python that load it and say what is on image.jpg."""
    return [
        "import json",
        f"import torch, {library_of(model.network)}",
        "from PIL import Image",
        "from safetensors.torch import load_file",
        "from torchvision.transforms import v2",
        "config = json.load(open('config.json', encoding='utf-8'))",
        *builder(model.network),
        f"model.load_state_dict(load_file('{FILE}'))",
        *view_lines(model.preprocessing),
        "with torch.inference_mode():",
        "    probabilities = model.eval()(images).softmax(1)[0].tolist()",
        "print(dict(zip(config['classes'], probabilities)))",
    ]
