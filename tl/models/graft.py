"""Grafting: named parts of one checkpoint copied into a network of another architecture.

A part is all below a name (``layer1``, ``features.5``) or a stage, or what a regular expression
matches. What there was of the part's names is reported: which were copied, which had another shape,
for which the network has no place, and what of the network's part was given nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tl.config import GraftConfig
from tl.errors import UserError, printable
from tl.models import folders, saved, weight_files, zoo
from tl.models.load_report import LoadReport, listed
from tl.models.network import Network
from tl.models.stages import Stage, is_below

_NEAREST = 3  # names that are offered on each side where nothing matches


@dataclass(frozen=True)
class Grafted:
    """Names of the network that were copied into, that were of another shape and that got nothing,
    and names of the source that the network has no place for."""

    copied: tuple[str, ...]
    misshaped: tuple[str, ...]
    new: tuple[str, ...]
    homeless: tuple[str, ...]


def graft(network: Network, wish: GraftConfig) -> Grafted:
    """Copy what ``wish`` asks for into ``network``, in place.

    Raises UserError, before anything is changed, if the source cannot be read, nothing matches, two
    names would be copied to one, a value is not finite, or shapes differ (but for
    ``on_mismatch: skip``).
    """
    path = Path(wish.weights).expanduser()
    folder = folders.model_folder(path)
    state = weight_files.read(folder / "model.safetensors" if folder else path, wish.weights_key)
    stages = _stages_in(folder) if folder else ()
    target = network.model.state_dict()  # the tensors themselves, not copies
    part: list[str]
    if wish.match is not None:
        pairs, part = _by_pattern(wish, state), []
    else:
        assert wish.from_ is not None
        to = wish.from_ if wish.to is None else wish.to
        pairs, part = _by_part(wish.from_, to, state, stages, network)
    if not any(mine in target for _, mine in pairs):
        raise UserError(_nothing_matches(wish, pairs, state, stages, network))
    where = f"the graft from {wish.weights}"
    sources = {mine: theirs for theirs, mine in pairs}
    if len(sources) < len(pairs):
        twice = [theirs for theirs, mine in pairs if sources[mine] != theirs]
        raise UserError(
            f"{where} copies two names to one: {listed(twice)} and others. Give a `rename` that "
            "keeps them apart."
        )
    found = {mine: state[theirs] for theirs, mine in pairs if mine in target}
    misshaped = [name for name, value in found.items() if value.shape != target[name].shape]
    if misshaped and wish.on_mismatch == "error":
        shapes = [
            f"{sources[n]} {tuple(found[n].shape)} instead of {tuple(target[n].shape)} of {n}"
            for n in misshaped
        ]
        raise UserError(
            f"{where}: {len(misshaped)} of {len(found)} are of another shape: {listed(shapes)}. "
            "Graft a narrower part, or leave these out with on_mismatch: skip."
        )
    copied = [name for name in found if name not in misshaped]
    broken = [
        sources[name]
        for name in copied
        if found[name].is_floating_point() and not found[name].isfinite().all()
    ]
    if broken:
        raise UserError(f"{where} has values that are no finite numbers in {listed(broken)}.")
    if not copied:
        raise UserError(f"{where}: not one of {len(found)} tensors has the shape that it needs.")
    with torch.no_grad():
        for name in copied:
            target[name].copy_(found[name])
    return Grafted(
        copied=tuple(copied),
        misshaped=tuple(misshaped),
        new=tuple(name for name in part if name not in copied),
        homeless=tuple(theirs for theirs, mine in pairs if mine not in target),
    )


def with_graft(report: LoadReport, wish: GraftConfig, done: Grafted) -> LoadReport:
    """The report of a network's weights after a graft into it."""
    note = f"graft from {wish.weights}: {len(done.copied)} tensors copied"
    if done.misshaped:
        note += f"; of another shape, skipped: {listed(done.misshaped)}"
    if done.homeless:
        note += f"; not in the network: {listed(done.homeless)}"
    if done.new:
        note += f"; given nothing: {listed(done.new)}"
    copied = set(done.copied)
    return replace(
        report,
        names=(*(name for name in report.names if name not in copied), *done.copied),
        new=tuple(name for name in report.new if name not in copied),
        skipped=(*report.skipped, *done.misshaped),
    ).with_note(note)


def _stages_in(folder: Path) -> Sequence[Stage]:
    """The stages of the network in a model folder, by which its parts may be called."""
    config = saved.read_config(folder / "config.json")
    with torch.device("meta"):
        return zoo.rebuild(config["architecture"], config["arguments"]).stages


def _by_pattern(wish: GraftConfig, state: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Pairs of a name in the source, all of which matches, and what the network calls it."""
    pattern = re.compile(wish.match or "")
    found = [(name, pattern.fullmatch(name)) for name in state]
    return [(name, match.expand(wish.rename or r"\g<0>")) for name, match in found if match]


def _by_part(
    start: str, to: str, state: dict[str, Tensor], stages: Sequence[Stage], network: Network
) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of names below two parts, and the network's names below its own."""
    mine = list(network.model.state_dict())
    theirs_below = _prefixes(start, state, stages)
    mine_below = _prefixes(to, mine, network.stages)
    if theirs_below and mine_below and len(theirs_below) != len(mine_below):
        raise UserError(
            f"{printable(start)[:100]} is {listed(theirs_below)}, and {printable(to)[:100]} is "
            f"{listed(mine_below)}: these are not as many. Graft them one by one."
        )
    pairs = [
        (name, b + name.removeprefix(a))
        for a, b in zip(theirs_below, mine_below, strict=bool(theirs_below and mine_below))
        for name in state
        if is_below(name, a)
    ]
    return pairs, [name for name in mine if any(is_below(name, b) for b in mine_below)]


def _prefixes(part: str, names: Iterable[str], stages: Sequence[Stage]) -> list[str]:
    """What a part stands for: names below it, or all that the stage of this name owns, in order."""
    if any(is_below(name, part) for name in names):
        return [part]
    return [name for stage in stages if stage.name == part for name in stage.owns]


def _nothing_matches(
    wish: GraftConfig,
    pairs: list[tuple[str, str]],
    state: dict[str, Tensor],
    stages: Sequence[Stage],
    network: Network,
) -> str:
    mine = list(network.model.state_dict())
    if wish.match is not None:
        asked, wanted = wish.match, (pairs[0][1] if pairs else wish.rename or wish.match)
    else:
        asked = wish.from_ or ""
        wanted = wish.to or asked
    theirs_near = _nearest(asked, list(state), stages)
    mine_near = _nearest(wanted, mine, network.stages)
    found = f" ({len(pairs)} names match in the file, such as {pairs[0][0]})" if pairs else ""
    return (
        f"the graft of {printable(asked)[:100]!r} from {wish.weights} to "
        f"{printable(wanted)[:100]!r} of {network.architecture} matches nothing{found}. "
        f"Nearest in the file: {theirs_near}. Nearest in the network: {mine_near}."
    )


def _nearest(asked: str, names: list[str], stages: Sequence[Stage]) -> str:
    """The parts whose names are nearest to what was asked for; the first ones if none is near."""
    parts = [stage.name for stage in stages]
    for name in names:
        pieces = name.split(".")[:-1]
        parts += [".".join(pieces[: i + 1]) for i in range(min(len(pieces), 3))]
    parts = list(dict.fromkeys(parts))[:2000]
    near = difflib.get_close_matches(asked, parts, n=_NEAREST, cutoff=0.7)
    return listed(near or parts or names)
