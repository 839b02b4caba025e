"""Loading weights into a network: all but the head must fit exactly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tl.atomic import from_json
from tl.errors import UserError, printable
from tl.models import folders, head_rows, published, weight_files
from tl.models.channels import fit_channels
from tl.models.head_rows import HeadClasses
from tl.models.load_report import LoadReport, listed
from tl.models.network import Network, head_parameters
from tl.models.positions import fit_positions
from tl.models.prefixes import common_prefix
from tl.models.published import download, is_cached
from tl.models.stages import is_below
from tl.models.zoo import set_final_relu
from tl.paths import is_weights_path

__all__ = ["LoadReport", "download", "fit", "is_cached", "load"]

# Auxiliary classifiers, which a file may have where the network was built without.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}

Rows = Callable[[int], list[int | None]]
"""From the number of rows of a pretrained head to the row that each class starts from, if any."""


def load(
    network: Network,
    weights: str | None,
    keep_head: bool = False,
    fetch: bool = True,
    key: str | None = None,
    head_classes: HeadClasses | None = None,
) -> LoadReport:
    """Load ``weights`` into ``network``, in place.

    ``weights`` is a path (a file, a run folder or a model folder), a name that torchvision has
    weights under for this architecture ("DEFAULT", "IMAGENET1K_V1", …; for timm "DEFAULT"), or None
    for random weights. What exists or looks like a path is a path.

    The head, with the final layers of auxiliary classifiers, stays new unless ``keep_head``; with
    ``head_classes`` the classes that the weights know start from their rows of it. What stands
    before all names is left out (`tl.models.prefixes`), the first convolution is adapted to the
    network's channels (`tl.models.channels`), positions to its image size (`tl.models.positions`).
    With ``key``, weights are looked for under it in the file. With ``fetch=False`` nothing is
    downloaded.

    Raises UserError if the weights cannot be found, read or downloaded, or do not fit.
    """
    if weights is None:
        if key is not None or head_classes is not None:
            which = "model.weights_key" if key is not None else "model.head=classes"
            raise UserError(f"{which} is about pretrained weights, and model.weights is null.")
        return LoadReport("random weights", (), tuple(network.model.state_dict()), ())
    state, source, final_relu, known = read(network, weights, fetch, key)

    notes: list[str] = []

    def rows(count: int) -> list[int | None]:
        assert head_classes is not None
        names = known
        if names is None and count == len(imagenet := head_rows.imagenet_classes()):
            names = imagenet
        found = head_rows.rows_of(head_classes, names, count)
        notes.extend(head_rows.describe(head_classes, names, found))
        return found

    report = fit(network, state, source, keep_head, rows if head_classes else None)
    for note in notes:
        report = report.with_note(note)
    whole_head = keep_head or (head_classes and not set(report.new) & head_parameters(network))
    if whole_head and "final_relu" in network.arguments:
        set_final_relu(network, final_relu)
    return report


class Read(NamedTuple):
    """What was found as weights."""

    state: dict[str, Tensor]
    """by the names that they have there"""
    source: str
    """where they are from, for people"""
    final_relu: bool
    """of a SqueezeNet: whether its head ends in one"""
    classes: list[str] | None
    """of a model folder"""


def read(network: Network, weights: str, fetch: bool = True, key: str | None = None) -> Read:
    """Read weights for ``network``; see `load`."""
    final_relu = True  # SqueezeNet as published
    known: list[str] | None = None
    if is_weights_path(weights):
        path = Path(weights).expanduser()
        folder = folders.model_folder(path)
        state = weight_files.read(folder / "model.safetensors" if folder else path, key)
        source = f"{folder or path}{f' ({key})' if key else ''}"
        if folder:
            config = _config_of(folder / "config.json")
            final_relu = bool(config["arguments"].get("final_relu", True))
            known = list(map(str, config["classes"]))
            _check_cut(network, config["arguments"].get("kept_stages"), source)
    else:
        if key is not None:
            raise UserError(f"model.weights_key is about a file, and {weights} is none.")
        if not fetch and not is_cached(network.architecture, weights):
            raise published.not_downloaded(network.architecture, weights, "fetch is off")
        state = published.fetch(network.architecture, weights, network.arguments)
        source = f"{network.architecture} {weights}"
    return Read(state, source, final_relu, known)


def fit(
    network: Network,
    state: dict[str, Tensor],
    source: str,
    keep_head: bool,
    rows: Rows | None = None,
) -> LoadReport:
    """Copy named tensors into ``network``, each in its own dtype; see ``load``.

    With a new head, names that lie in no module of the network's are dropped where all else fits:
    the projection of self-supervised learning, a queue, a decoder. Those of stages that were cut
    off are dropped in any case.

    Raises UserError, before anything is changed, if names or shapes do not fit, or a value is not
    finite.
    """
    target = network.model.state_dict()  # the tensors themselves, not copies
    heads = head_parameters(network)
    state, outside, notes = by_own_names(network, state, source)
    state, adapted = fit_channels(network.model, state)
    state, interpolated = fit_positions(network, state, source)
    notes += [*adapted, *interpolated]
    used, foreign = _used(network, state, source, keep_head)
    new_rows = False
    if rows is not None:
        taken, new_rows = _head_from_rows(network, state, source, rows)
        used |= taken
    broken = [n for n, v in used.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        kind = "tensors" if len(broken) > 1 else "tensor"
        raise UserError(
            f"{source} has values that are no finite numbers in {len(broken)} {kind}: "
            f"{listed(broken)}. Give model.weights another file, such as an earlier checkpoint."
        )
    with torch.no_grad():
        for name, value in used.items():
            target[name].copy_(value)
    if foreign:
        notes.append(f"not of {network.architecture}, dropped: {listed(foreign)}")
    whole = [name for name in used if not (new_rows and name in heads)]
    return LoadReport(
        source,
        names=tuple(whole),
        new=tuple(name for name in target if name not in whole),
        dropped=(*(name for name in state if name not in used), *outside),
        notes=tuple(notes),
    )


def by_own_names(
    network: Network, state: dict[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The tensors by the network's own names, the names of those elsewhere, and notes for people.

    Older names of torchvision's and a prefix before all of them are understood.
    """
    target = network.model.state_dict()
    wanted = set(target) - head_parameters(network) - _not_learned(target)
    return _without_prefix(_renamed(state), wanted, source)


def _not_learned(target: dict[str, Tensor]) -> set[str]:
    """Counters and index tables (num_batches_tracked, relative_position_index) may be missing."""
    return {name for name, value in target.items() if not value.is_floating_point()}


def _used(
    network: Network, state: dict[str, Tensor], source: str, keep_head: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """What is loaded of ``state``, and what of it lies outside all modules of the network's.

    Raises UserError if it does not fit.
    """
    target, heads = network.model.state_dict(), head_parameters(network)
    left_new = set() if keep_head else set(heads)
    for stage in network.stages:
        if stage.aux and not any(is_below(name, stage.aux.name) for name in state):
            left_new |= {name for name in target if is_below(name, stage.aux.name)}
    unwanted = set() if keep_head else set(heads)
    unwanted |= {name for name in state if name not in target and _has_no_use(network, name)}
    extra = [name for name in state if name not in target and name not in unwanted]
    used = {name: value for name, value in state.items() if name in target and name not in unwanted}
    foreign: list[str] = []
    if not keep_head:
        tops = {name.partition(".")[0] for name in target if name not in heads}
        head = network.stages[-1]
        foreign = [n for n in extra if n.partition(".")[0] not in tops or head.owns_name(n)]
    may_miss = left_new | _not_learned(target)
    missing = [name for name in target if name not in used and name not in may_miss]
    misshaped = [
        f"{name} {tuple(value.shape)} instead of {tuple(target[name].shape)}"
        for name, value in used.items()
        if value.shape != target[name].shape
    ]
    if missing or misshaped or set(extra) - set(foreign):
        problems = {"missing": missing, "unexpected": extra, "of another shape": misshaped}
        hint = _hint(len(used) - len(misshaped), len(target))
        if keep_head and all(line.split()[0] in heads for line in [*missing, *misshaped]):
            hint = "It is the head that does not fit: give model.head=new, or as many classes."
        raise UserError(f"{source} does not fit {network.architecture}:{_listed(problems)}\n{hint}")
    return used, foreign


def _without_prefix(
    state: dict[str, Tensor], wanted: set[str], source: str
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The tensors under the prefix that the names have, the names of the others, and a note."""
    prefix = common_prefix(state, wanted, source)
    if not prefix:
        return state, [], []
    below = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    note = f"names stand under {printable(prefix)[:100]!r}"
    if outside:
        note += f"; {len(outside)} under others, dropped: {listed(outside)}"
    return below, outside, [note]


def _has_no_use(network: Network, name: str) -> bool:
    """Whether it was cut off, or is of an auxiliary classifier that the network has not."""
    auxiliary = _AUXILIARY.get(network.architecture, ())
    cut_off = any(stage.owns_name(name) for stage in network.left_out)
    return cut_off or any(is_below(name, classifier) for classifier in auxiliary)


def _head_from_rows(
    network: Network, state: dict[str, Tensor], source: str, rows: Rows
) -> tuple[dict[str, Tensor], bool]:
    """The head's tensors with rows of those in ``state``, and whether a class starts new."""
    target, heads = network.model.state_dict(), head_parameters(network)
    if network.left_out:
        raise UserError(
            "model.head=classes takes rows of the pretrained head, and model.reuse.stages puts "
            "another one on a part of the network. Give model.head=new."
        )
    own = [name for name in heads if network.stage_of(name) == network.stages[-1].name]
    counts = {len(state[name]) for name in own if name in state and state[name].dim()}

    def has_rows(name: str) -> bool:
        there = name in state and state[name].dim() == target[name].dim()
        return there and state[name].shape[1:] == target[name].shape[1:]

    odd = [name for name in own if not has_rows(name)]
    if odd or len(counts) != 1:
        raise UserError(
            f"{source} has no head with rows for classes: {listed(odd or own)} is missing or of "
            "another shape. Give model.head=new."
        )
    (count,) = counts
    picked = rows(count)
    made = {
        name: head_rows.with_rows(target[name], state[name], picked)
        for name in heads
        if has_rows(name) and len(state[name]) == count
    }
    return made, None in picked


def _check_cut(network: Network, kept: object, source: str) -> None:
    """Say it where a folder's network is a part of what the weights are to go into."""
    mine = network.arguments.get("kept_stages")
    if isinstance(kept, int) and (mine is None or mine > kept):
        raise UserError(
            f"{source} is the first {kept} stages of a network, and this one has "
            f"{mine or len(network.stages) - 1}. Give model.reuse.stages={kept}, or fewer."
        )


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as they are today: files of torchvision's DenseNet and ViT have older ones."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
        name = re.sub(r"(encoder_layer_\d+\.mlp)\.linear_1\.", r"\1.0.", name)
        name = re.sub(r"(encoder_layer_\d+\.mlp)\.linear_2\.", r"\1.3.", name)
        renamed[name] = value
    return renamed


def _config_of(path: Path) -> dict:
    """The config.json of a model folder, as far as weights ask for it."""
    try:
        config = from_json(path.read_bytes())
        if not isinstance(config["arguments"], dict) or not isinstance(config["classes"], list):
            raise TypeError("arguments or classes")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} is no config.json of a model folder: {error!r}") from error
    return config


def _listed(problems: dict[str, list[str]]) -> str:
    """Each kind of problem with its first names, a line each."""
    return "".join(
        f"\n  {len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names
    )


def _hint(fitting: int, wanted: int) -> str:
    if fitting < wanted / 2:
        return (
            f"Only {max(fitting, 0)} of {wanted} names fit: these are weights of another "
            "architecture. Set model.name to the one they were trained with."
        )
    return "Most of it fits: it is a variant. Set model.name to the one it was trained with."
