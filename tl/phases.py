"""From the short name of a strategy to the list of phases that it stands for.

A strategy is a function of its argument and of the top-level training keys. It returns the
phases as plain dictionaries that hold only what differs from those keys:

    strategy: last_stages(2)    ->    phases: [{name: last_stages, train: last_stages(2)}]

Those of several phases, and those whose phases follow from the network or the data, are in
`tl.strategies`.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from tl import strategies
from tl.config import Training
from tl.errors import UserError, unknown
from tl.strategies import Later, PartialPhase, Strategy


def parse_call(text: str, what: str) -> tuple[str, str | None]:
    """Split ``"last_stages(2)"`` into ``("last_stages", "2")``; ``"head"`` into ``("head", None)``.

    The argument is kept as it stands, so that a regular expression needs no quoting.
    """
    match = re.fullmatch(r"\s*([\w.:]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None:
        raise UserError(f"{what} {text!r} is neither a name nor name(argument)")
    name, argument = match.groups()
    return name, None if argument is None else argument.strip()


def load_object(reference: str, what: str) -> Any:
    """Import ``package.module:name``, the way to name code that lives outside this project."""
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{what} {reference!r} cannot be imported: {error}. It must be package.module:name, "
            "and the package must be installed or on PYTHONPATH."
        ) from error


def one_phase(train: str, says: str) -> Strategy:
    """A strategy of one phase, which trains what the freezing strategy of its name selects.

    Args:
        says: how it is written and what trains, for ``--help``.
    """

    def strategy(argument: str | None, training: Training) -> list[PartialPhase]:
        del training
        return [{"name": train, "train": train if argument is None else f"{train}({argument})"}]

    strategy.__doc__ = says
    return strategy


STRATEGIES: dict[str, Strategy] = {
    name: one_phase(name, says)
    for name, says in {
        "full": "full: everything trains",
        "head": "head: the layer whose outputs are the classes",
        "last_stages": "last_stages(n): the last n stages, the head counted",
        "from_stage": "from_stage(name): that stage and all after it",
        "regex": "regex(pattern): the parameters in whose names the pattern is found",
        "norm": "norm: normalisation layers and the head",
        "bias": "bias: all biases and the head",
        "freeze_embed": "freeze_embed: all but the first stage, a stem or an embedding of patches",
        "freeze_head": "freeze_head: all but the head, which stays as it was trained before",
        "lora": "lora(r): adapters of rank r on convolutions and linear layers, and the head; "
        "lora(r, pattern): on those in whose names the pattern is found",
    }.items()
} | {
    "lp_ft": strategies.lp_ft,
    "bottleneck": strategies.bottleneck,
    "gradual": strategies.gradual,
    "discriminative": strategies.discriminative,
    "layer_decay": strategies.layer_decay,
    "surgical": strategies.surgical,
    "auto": strategies.auto,
}
"""The first line of a strategy's docstring is what ``--help`` shows."""


def expand(strategy: str, training: Training) -> list[PartialPhase] | Later:
    """The phases of a strategy, each holding only what differs from the top-level keys.

    For one that has to know the network or the data it is what makes them of that.

    Raises:
        UserError: no such strategy; the nearest is offered.
    """
    name, argument = parse_call(strategy, "strategy")
    if ":" in name:
        return load_object(name, "strategy")(argument, training)
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name](argument, training)
