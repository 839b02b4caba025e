"""LoRA as a freezing strategy, ``lora(r)`` or ``lora(r, pattern)``: which weights get adapters.

The network stays frozen but for the heads, which train in full. Adapters of rank r are put on the
weights of all convolutions and linear layers outside the heads, or on those in whose names the
pattern is found; see ``tl.models.adapters``.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tl.errors import UserError
from tl.models.adapters import Adapters, num_parameters
from tl.models.network import Network, head_parameters
from tl.phases import parse_call

LAYERS = (_ConvNd, nn.Linear, nn.MultiheadAttention)


def lora(network: Network, argument: str | None) -> frozenset[str]:
    """What trains besides the adapters: the heads, auxiliary ones too."""
    _targets(network, *_parsed(argument))
    return head_parameters(network)


def adapt(network: Network, train: str, seed: int) -> None:
    """Give ``network`` the adapters of a phase's ``train``, or take away those it had.

    It then computes what it computed without.

    Args:
        seed: of their first values.

    Raises:
        UserError: ``lora`` with a rank that is none, or a pattern that matches nothing.
    """
    network.adapters = None
    found = _of(network, train)
    if found is not None:
        network.adapters = Adapters(*found, seed)


def num_adapter_parameters(network: Network, train: str) -> int:
    """How many parameters `adapt` adds for a phase's ``train``; 0 for all but ``lora``."""
    weights, rank = _of(network, train) or ({}, 0)
    return sum(num_parameters(weight, rank) for weight in weights.values())


def is_lora(train: str) -> bool:
    """Whether a phase's ``train`` adapts."""
    return parse_call(train, "train")[0] == "lora"


def _of(network: Network, train: str) -> tuple[dict[str, Tensor], int] | None:
    if not is_lora(train):
        return None
    rank, pattern = _parsed(parse_call(train, "train")[1])
    return _targets(network, rank, pattern), rank


def _parsed(argument: str | None) -> tuple[int, str | None]:
    """Rank and pattern."""
    found = re.fullmatch(r"([0-9]{1,6})\s*(?:,\s*(.+))?", argument or "", re.DOTALL)
    if found is None or int(found[1]) < 1:
        given = "lora" if argument is None else f"lora({argument})"
        raise UserError(
            f"{given}: lora takes a rank of 1 or more and, if not all weights are to have "
            r"adapters, a pattern of their names: lora(8), or lora(8, layer4\.)"
        )
    return int(found[1]), found[2]


def _targets(network: Network, rank: int, pattern: str | None) -> dict[str, Tensor]:
    """The weights that get adapters, by name."""
    heads = head_parameters(network)
    weights: dict[str, Tensor] = {}
    for module_name, module in network.model.named_modules():
        if isinstance(module, LAYERS):
            for name, parameter in module.named_parameters(module_name, recurse=False):
                if parameter.dim() > 1 and name not in heads:
                    weights[name] = parameter
    if not weights:
        raise UserError(
            f"lora({rank}): {network.architecture} has no convolution or linear layer outside its "
            "head; train: full or train: head would train it"
        )
    if pattern is None:
        return weights
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"lora({rank}, {pattern}): not a regular expression: {error}") from None
    selected = {name: weight for name, weight in weights.items() if compiled.search(name)}
    if not selected:
        names = list(weights)
        raise UserError(
            f"lora({rank}, {pattern}) matches none of the {len(names)} weights of "
            f"{network.architecture} that can have adapters: {', '.join(names[:4])}, … "
            f"{', '.join(names[-2:])}. lora({rank}) adapts all of them"
        )
    return selected
