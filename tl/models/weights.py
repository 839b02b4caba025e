"""Loading weights into a network: all but the head must fit exactly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from tl.atomic import from_json
from tl.errors import UserError, printable
from tl.models import folders, published, weight_files
from tl.models.network import Network, head_parameters
from tl.models.published import download, is_cached
from tl.models.stages import is_below
from tl.models.zoo import set_final_relu
from tl.paths import is_weights_path

__all__ = ["LoadReport", "download", "fit", "is_cached", "load"]

_SHOWN = 10  # names that an error lists of each kind
# Auxiliary classifiers, which a file may have where the network was built without.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


@dataclass(frozen=True)
class LoadReport:
    """What became of the weights: their source, and names loaded, left new, and not used."""

    source: str
    loaded: int
    new: tuple[str, ...]
    dropped: tuple[str, ...]


def load(
    network: Network, weights: str | None, keep_head: bool = False, fetch: bool = True
) -> LoadReport:
    """Load ``weights`` into ``network``, in place.

    ``weights`` is a path (a file, a run folder or a model folder), a name that torchvision has
    weights under for this architecture ("DEFAULT", "IMAGENET1K_V1", …; for timm "DEFAULT"), or None
    for random weights. What exists or looks like a path is a path.

    The head, with the final layers of auxiliary classifiers, stays new unless ``keep_head``. A ViT
    of another image size gets interpolated position embeddings. With ``fetch=False`` nothing is
    downloaded.

    Raises UserError if the weights cannot be found, read or downloaded, or do not fit.
    """
    if weights is None:
        return LoadReport("random weights", 0, tuple(network.model.state_dict()), ())
    state, source, final_relu = read(network, weights, fetch)
    report = fit(network, state, source, keep_head)
    if keep_head and "final_relu" in network.arguments:
        set_final_relu(network, final_relu)
    return report


def read(network: Network, weights: str, fetch: bool = True) -> tuple[dict[str, Tensor], str, bool]:
    """The tensors of ``weights`` for ``network``, where they are from, and SqueezeNet's final ReLU.

    Names are as they are today; see ``load``.
    """
    final_relu = True  # SqueezeNet as published
    if is_weights_path(weights):
        path = Path(weights).expanduser()
        folder = folders.model_folder(path)
        state = weight_files.read(folder / "model.safetensors" if folder else path)
        source = str(folder or path)
        if folder:
            final_relu = _final_relu(folder / "config.json")
    else:
        if not fetch and not is_cached(network.architecture, weights):
            raise published.not_downloaded(network.architecture, weights, "fetch is off")
        state = published.fetch(network.architecture, weights, network.arguments)
        source = f"{network.architecture} {weights}"
    return _renamed(state), source, final_relu


def fit(network: Network, state: dict[str, Tensor], source: str, keep_head: bool) -> LoadReport:
    """Copy named tensors into ``network``, each in its own dtype; see ``load``.

    Raises UserError, before anything is changed, if names or shapes do not fit, or a value is not
    finite.
    """
    target = network.model.state_dict()  # the tensors themselves, not copies
    state = _interpolated(network, _renamed(state), source)
    heads = head_parameters(network)
    left_new = set() if keep_head else set(heads)
    for stage in network.stages:
        if stage.aux and not any(is_below(name, stage.aux.name) for name in state):
            left_new |= {name for name in target if is_below(name, stage.aux.name)}
    # A counter or an index table (num_batches_tracked, relative_position_index) is not learned.
    optional = {name for name, value in target.items() if not value.is_floating_point()}

    auxiliary = _AUXILIARY.get(network.architecture, ())
    unwanted = {n for n in state if n not in target and any(is_below(n, a) for a in auxiliary)}
    unwanted |= set() if keep_head else set(heads)
    used = {name: value for name, value in state.items() if name not in unwanted}
    missing = [name for name in target if name not in used and name not in left_new | optional]
    unexpected = [name for name in used if name not in target]
    shapes = {n: (v.shape, target[n].shape) for n, v in used.items() if n in target}
    misshaped = [
        f"{name} {tuple(found)} instead of {tuple(wanted)}"
        for name, (found, wanted) in shapes.items()
        if found != wanted
    ]
    if missing or unexpected or misshaped:
        problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
        hint = _hint(len(used) - len(unexpected) - len(misshaped), len(target))
        if keep_head and all(line.split()[0] in heads for line in [*missing, *misshaped]):
            hint = "It is the head that does not fit: give model.head=new, or as many classes."
        raise UserError(f"{source} does not fit {network.architecture}:{_listed(problems)}\n{hint}")
    broken = [n for n, v in used.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        listed = " ".join(_listed({"tensors" if len(broken) > 1 else "tensor": broken}).split())
        raise UserError(
            f"{source} has values that are no finite numbers in {listed}. Give model.weights "
            "another file, such as an earlier checkpoint."
        )
    with torch.no_grad():
        for name, value in used.items():
            target[name].copy_(value)
    new = tuple(name for name in target if name not in used)
    return LoadReport(source, len(used), new, tuple(name for name in state if name not in used))


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as they are today: files of torchvision's DenseNet and ViT have older ones."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
        name = re.sub(r"(encoder_layer_\d+\.mlp)\.linear_1\.", r"\1.0.", name)
        name = re.sub(r"(encoder_layer_\d+\.mlp)\.linear_2\.", r"\1.3.", name)
        renamed[name] = value
    return renamed


def _interpolated(network: Network, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """``state`` with position embeddings for the image size of a ViT of torchvision."""
    model, name = network.model, "encoder.pos_embedding"
    if not isinstance(model, VisionTransformer) or name not in state:
        return state
    found, wanted = state[name], model.encoder.pos_embedding
    if found.shape == wanted.shape or found.dim() != 3 or found.shape[2] != wanted.shape[2]:
        return state  # it fits, or it is of another network: fit says so
    try:
        positions = {name: found.float()}
        return {**state, **interpolate_embeddings(model.image_size, model.patch_size, positions)}
    except ValueError as error:
        raise UserError(f"{source}: {name} is no square grid of patches: {error}") from error


def _final_relu(config: Path) -> bool:
    """Whether a SqueezeNet of ours was saved with its final ReLU."""
    try:
        return bool(from_json(config.read_bytes())["arguments"].get("final_relu", True))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{config} is no config.json of a model folder: {error!r}") from error


def _listed(problems: dict[str, list[str]]) -> str:
    """Each kind of problem with its first names, a line each."""
    text = ""
    for kind, names in problems.items():
        if names:
            rest = f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            shown = ", ".join(printable(name)[:100] for name in names[:_SHOWN])
            text += f"\n  {f'{len(names)} {kind}'.strip()}: {shown}{rest}"
    return text


def _hint(fitting: int, wanted: int) -> str:
    if fitting < wanted / 2:
        return (
            f"Only {max(fitting, 0)} of {wanted} names fit: these are weights of another "
            "architecture. Set model.name to the one they were trained with."
        )
    return "Most of it fits: it is a variant. Set model.name to the one it was trained with."
