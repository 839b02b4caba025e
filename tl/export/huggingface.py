"""``huggingface``: a folder for Transformers: weights, labels and an image processor.

Networks of timm, and those of torchvision that timm has as well, go in as Transformers'
TimmWrapper, which needs timm where it is loaded. torchvision's ResNets, ViTs and ConvNeXts become
Transformers' own: the same tensors under other names (`tl.export.transformers_names`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tl.data.transforms import normalise
from tl.errors import UserError
from tl.export import timm as timm_format
from tl.export.check import Reader
from tl.export.needs import needs
from tl.export.plain import check_plain, library_of
from tl.export.transformers_names import renamed
from tl.export.wish import Wish
from tl.models import tensor_files
from tl.models.preprocessing import Preprocessing
from tl.models.saved import SavedModel

FILE = timm_format.FILE


def write(model: SavedModel, folder: Path, wish: Wish) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json.

    Raises:
        UserError: Transformers or timm is missing, or has no such network.
    """
    check_plain(model.network, wish.format)
    transformers = needs("transformers", f"--to {wish.format}")
    found = renamed(model.network, model.preprocessing.crop_size)
    if found is not None:
        kind, keywords, state = found
        config = getattr(transformers, f"{kind}Config")(
            architectures=[f"{kind}ForImageClassification"],
            id2label=dict(enumerate(model.classes)),
            label2id={name: i for i, name in enumerate(model.classes)},
            **keywords,
        )
        with _quiet(transformers):
            config.save_pretrained(folder)
            _processor(transformers, model.preprocessing).save_pretrained(folder)
        # By our own writer, which says a full disk as what it is.
        tensor_files.write(tensor_files.copies(state), folder / FILE)
        return
    theirs = None
    if library_of(model.network) == "timm" or _has_timm():
        theirs = timm_format.in_timm(model.network)
    if theirs is None:
        raise UserError(
            f"Transformers has no {model.network.architecture} that torchvision's weights would fit"
            " (ResNets but wide and grouped ones, ViTs and ConvNeXts do, and with timm installed "
            "what --to timm takes). --to safetensors, --to onnx and --to torch-export do not need "
            "Transformers; a run with model.name=timm:NAME can be exported to it always"
        )
    timm_format.write_folder(*theirs, model, folder)


def _has_timm() -> bool:
    try:
        needs("timm", "--to huggingface")
    except UserError:
        return False
    return True


def _processor(transformers: Any, p: Preprocessing) -> Any:
    """CLIP's is the one that resizes the shorter edge, crops, and takes all numbers as given."""
    filters = {"nearest-exact": "NEAREST"}
    name = filters.get(p.interpolation, p.interpolation.upper())
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": p.resize_size},
        crop_size={"height": p.crop_size, "width": p.crop_size},
        resample=int(Image.Resampling[name]),
        image_mean=list(p.mean),
        image_std=list(p.std),
    )


def read(folder: Path, model: SavedModel) -> Reader:
    """The folder's network, as Transformers makes it."""
    transformers = needs("transformers", "--to huggingface")
    with _quiet(transformers):
        network = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True
        ).eval()
    return lambda pixels: network(pixel_values=normalise(pixels, model.preprocessing)).logits


def own_view(folder: Path) -> Callable[[Image.Image], Tensor]:
    """From an RGB image to the input (channels, S, S), as Transformers prepares it."""
    transformers = needs("transformers", "--to huggingface")
    with _quiet(transformers):
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def view(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    return view


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and advice."""
    logging = transformers.utils.logging
    before, shows = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if shows:
            logging.enable_progress_bar()


def snippet(model: SavedModel, wish: Wish) -> list[str]:
    """Lines of Python that load it and say what is on image.jpg."""
    mode = "L" if model.preprocessing.channels == 1 else "RGB"
    return [
        "import torch",
        "from PIL import Image",
        "from transformers import AutoImageProcessor, AutoModelForImageClassification",
        "processor = AutoImageProcessor.from_pretrained('.')",
        "model = AutoModelForImageClassification.from_pretrained('.').eval()",
        f"image = Image.open('image.jpg').convert({mode!r})",
        "with torch.inference_mode():",
        "    logits = model(**processor(images=image, return_tensors='pt')).logits",
        "probabilities = logits.softmax(1)[0].tolist()",
        "print({model.config.id2label[i]: p for i, p in enumerate(probabilities)})",
    ]
