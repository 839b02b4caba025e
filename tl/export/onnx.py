"""``onnx``: a graph for ONNX Runtime and others, of any batch size.

By itself it takes normalised images, float32 (N, channels, S, S), and puts out ``logits`` (N, C).
With preprocessing it takes uint8 (N, channels, S, S), resized and cropped, normalises them, and
puts out ``logits`` and their softmax, ``probabilities``. What resizes is not in it: decoders and
filters differ from program to program.

The file says what it means, as JSON in its metadata: classes, mean, std, size, resize_size,
interpolation, architecture, and in ``input`` which of the two it takes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tl.atomic import write_json_atomically
from tl.cores import cores_of_node
from tl.data.transforms import normalise
from tl.errors import UserError
from tl.export import int8
from tl.export.check import Reader
from tl.export.described import config_of
from tl.export.needs import needs
from tl.export.plain import Staged
from tl.export.snippet import view_lines
from tl.export.wish import Wish
from tl.models.preprocessing import Preprocessing
from tl.models.saved import SavedModel

FILE, INT8_FILE = "model.onnx", "model.int8.onnx"
_LARGEST = 1_800_000_000
"""bytes of weights that go into the file itself; protobuf ends at 2 GiB"""


class FromPixels(nn.Module):
    """A network with what comes before it and after it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network((images.float() / 255 - self.mean) / self.std)
        return logits, logits.softmax(1)


def write(model: SavedModel, folder: Path, wish: Wish) -> None:
    """Write model.onnx, config.json and, if asked for, model.int8.onnx.

    Raises:
        UserError: a library is missing, or the network has an operation that ONNX does not.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        needs(name, f"--to {wish.format}")
    network: nn.Module = Staged(model.network).float().eval()
    side = model.preprocessing.crop_size
    example = torch.zeros(2, model.network.in_channels, side, side)
    outputs = ["logits"]
    if wish.with_preprocessing:
        network = FromPixels(network, model.preprocessing).eval()
        example, outputs = example.to(torch.uint8), ["logits", "probabilities"]
    try:
        with _silence():
            made = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                input_names=["images"],
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # tracing and translating fail in as many ways as there are networks
        first = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"torch {torch.__version__} cannot make ONNX of {model.network.architecture}: "
            f"{type(error).__name__}: {first[:300]}. --to safetensors has its weights alone"
        ) from error
    assert made is not None
    made.model.metadata_props.update(_metadata(model, wish))
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    made.save(folder / FILE, external_data=size > _LARGEST)
    if wish.int8:
        with _silence():
            int8.quantise(folder / FILE, folder / INT8_FILE, size > _LARGEST)
    write_json_atomically(folder / "config.json", config_of(model))


def _metadata(model: SavedModel, wish: Wish) -> dict[str, str]:
    p = model.preprocessing
    values: dict[str, Any] = {
        "classes": model.classes,
        "mean": p.mean,
        "std": p.std,
        "size": p.crop_size,
        "resize_size": p.resize_size,
        "interpolation": p.interpolation,
        "architecture": model.network.architecture,
        "input": "uint8 0 to 255" if wish.with_preprocessing else "float32, minus mean, by std",
    }
    # In ASCII: a class may be named by bytes that are no UTF-8, which protobuf does not take.
    return {key: json.dumps(value) for key, value in values.items()}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporters' progress, advice and warnings, on which nobody here can act."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def session(path: Path) -> Any:
    """ONNX Runtime on the cores of this process, or of its job."""
    runtime = needs("onnxruntime", "--to onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = cores_of_node()
    options.log_severity_level = 3
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def read(folder: Path, model: SavedModel, file: str = FILE) -> Reader:
    """The folder's graph, in ONNX Runtime."""
    opened = session(folder / file)
    given = opened.get_inputs()[0]
    from_pixels = given.type == "tensor(uint8)"

    def reader(pixels: Tensor) -> Tensor:
        images = pixels if from_pixels else normalise(pixels, model.preprocessing)
        logits = opened.run(["logits"], {given.name: images.contiguous().numpy()})[0]
        return torch.from_numpy(logits)

    return reader


def snippet(model: SavedModel, wish: Wish) -> list[str]:
    """Lines of Python that load it and say what is on image.jpg."""
    if wish.with_preprocessing:
        last = [
            "probabilities = session.run(['probabilities'], {'images': images.numpy()})[0][0]",
            "print(dict(zip(config['classes'], probabilities.tolist())))",
        ]
    else:
        last = [
            "logits = session.run(['logits'], {'images': images.numpy()})[0]",
            "probabilities = torch.from_numpy(logits).softmax(1)[0].tolist()",
            "print(dict(zip(config['classes'], probabilities)))",
        ]
    return [
        "import json",
        "import onnxruntime, torch",
        "from PIL import Image",
        "from torchvision.transforms import v2",
        "config = json.load(open('config.json', encoding='utf-8'))",
        f"session = onnxruntime.InferenceSession('{FILE}', providers=['CPUExecutionProvider'])",
        *view_lines(model.preprocessing, normalised=not wish.with_preprocessing),
        *last,
    ]
