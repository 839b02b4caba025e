"""Which parameters train, and what follows from that.

A freezing strategy is a function of a network, and of an argument if it takes one, that returns the
names of the parameters that train. Everything else is derived: ``requires_grad``, the frozen prefix
(the longest run of leading stages in which nothing trains) and the modules that stay in eval mode.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl.errors import UserError, brief, unknown
from tl.models.lora import lora
from tl.models.network import Network, head_parameters
from tl.models.stages import Stage, is_below
from tl.models.synced_batch_norm import separate, synchronize
from tl.phases import load_object, parse_call

Names = frozenset[str]
NORMALISATIONS = (
    _BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def _names(network: Network) -> list[str]:
    return [name for name, _ in network.model.named_parameters()]


def _number(argument: str | None, strategy: str) -> int:
    if argument is None or not re.fullmatch("[0-9]{1,9}", argument) or int(argument) < 1:
        raise UserError(f"{strategy} takes a number of stages, such as {strategy}(2)")
    return int(argument)


def full(network: Network) -> Names:
    """Everything trains."""
    return frozenset(_names(network))


def head(network: Network) -> Names:
    """The last stage trains: the layer whose outputs are the classes."""
    last = network.stages[-1]
    return frozenset(name for name in _names(network) if last.owns_name(name))


def last_stages(network: Network, argument: str | None) -> Names:
    """The last n stages train, the head counted."""
    n = _number(argument, "last_stages")
    if n > len(network.stages):
        raise UserError(
            f"last_stages({n}): {network.architecture} has {len(network.stages)} stages: "
            + ", ".join(stage.name for stage in network.stages)
        )
    return _owned(network, [stage.name for stage in network.stages[-n:]])


def from_stage(network: Network, argument: str | None) -> Names:
    """The named stage and all after it train."""
    names = [stage.name for stage in network.stages]
    if argument not in names:
        raise unknown("stage", str(argument), names, f"from_stage, {network.architecture}")
    return _owned(network, names[names.index(argument) :])


def freeze_embed(network: Network) -> Names:
    """All but the first stage trains, a stem or an embedding of patches (Kumar et al., 2022)."""
    return _owned(network, [stage.name for stage in network.stages[1:]])


def freeze_head(network: Network) -> Names:
    """All but the head trains, and but the last layers of auxiliary classifiers."""
    return frozenset(_names(network)) - head_parameters(network)


def surgical(network: Network, argument: str | None) -> Names:
    """The named stage trains, and the head (Lee et al., ICLR 2023)."""
    names = [stage.name for stage in network.stages]
    if argument not in names:
        raise unknown("stage", str(argument), names, f"surgical, {network.architecture}")
    return _owned(network, [argument, names[-1]])


def regex(network: Network, argument: str | None) -> Names:
    """The parameters whose names the pattern is found in train (`re.search`), and no others."""
    try:
        pattern = re.compile(argument or "(?!)")
    except re.error as error:
        raise UserError(f"regex({argument}): not a regular expression: {error}") from None
    selected = frozenset(name for name in _names(network) if pattern.search(name))
    if not selected:
        names = _names(network)
        raise UserError(
            f"regex({argument}) matches no parameter of {network.architecture}. Its parameters are "
            f"{', '.join(names[:4])}, … {', '.join(names[-2:])}"
        )
    return selected


def norm(network: Network) -> Names:
    """Weights and biases of the normalisation layers train, and the heads, auxiliary ones too."""
    selected = set(head_parameters(network))
    for module_name, module in network.model.named_modules():
        if isinstance(module, NORMALISATIONS) or "norm" in type(module).__name__.lower():
            selected |= {
                f"{module_name}.{name}" for name, _ in module.named_parameters(recurse=False)
            }
    return frozenset(selected)


def bias(network: Network) -> Names:
    """All biases train, and the heads, auxiliary ones too (BitFit: Ben Zaken et al., ACL 2022)."""
    biases = {name for name in _names(network) if name.rpartition(".")[2] == "bias"}
    return frozenset(biases | head_parameters(network))


FREEZING: dict[str, Callable[..., Iterable[str]]] = {
    "full": full,
    "head": head,
    "last_stages": last_stages,
    "from_stage": from_stage,
    "freeze_embed": freeze_embed,
    "freeze_head": freeze_head,
    "surgical": surgical,
    "regex": regex,
    "norm": norm,
    "bias": bias,
    "lora": lora,
}


def trainable_names(network: Network, train: str) -> Names:
    """The names of the parameters that train, for a phase's `train`.

    Raises:
        UserError: an unknown strategy or stage, or one that selects nothing.
    """
    name, argument = parse_call(train, "train")
    if ":" in name:
        names = _select(load_object(name, "freezing strategy"), network, name, argument)
        if stray := names - set(_names(network)):
            raise UserError(f"{name} returned {sorted(stray)[:3]}, which are no parameters")
    elif name in FREEZING:
        names = _select(FREEZING[name], network, name, argument)
    else:
        raise unknown("freezing strategy", name, FREEZING, f"train: {train}")
    if not names:
        raise UserError(f"train: {train} leaves nothing to train")
    return names


def _select(
    strategy: Callable[..., Iterable[str]], network: Network, name: str, argument: str | None
) -> Names:
    """What a strategy selects; it gets the text between the brackets if it has a place for it."""
    if not callable(strategy):
        raise UserError(f"freezing strategy {name} is no function but {brief(strategy)}")
    if len(inspect.signature(strategy).parameters) > 1:
        return frozenset(strategy(network, argument))
    if argument:
        raise UserError(f"{name} takes no argument, and was given {name}({argument})")
    return frozenset(strategy(network))


def _owned(network: Network, stages: Iterable[str]) -> Names:
    wanted = set(stages)
    return frozenset(name for name in _names(network) if network.stage_of(name) in wanted)


def freeze(network: Network, names: Names, batch_norm: str = "train") -> None:
    """Let exactly the parameters ``names`` train, and the adapters if there are any.

    Modules stay in eval mode when nothing in their stage trains. Inside a stage that trains that is
    narrowed to BatchNorm: one whose own weight is frozen keeps its statistics, and with
    ``batch_norm="frozen"`` all do; dropout there goes on firing. An auxiliary classifier of which
    nothing trains stays in eval mode as well, where it costs no time. With ``batch_norm="sync"``
    BatchNorm that trains takes its statistics over all processes.
    """
    for name, parameter in network.model.named_parameters():
        parameter.requires_grad_(name in names)
    adapted = network.adapters.targets if network.adapters is not None else ()
    training = {network.stage_of(name) for name in (*names, *adapted)}
    network.frozen_prefix = [stage.name in training for stage in network.stages].index(True)
    auxiliary = {stage.aux.name for stage in network.stages if stage.aux}
    still = set()
    for name, module in network.model.named_modules():
        stage = _stage_that_runs(network, name, module) if name else None
        if stage is not None and stage.name not in training:
            still.add(name)
        elif isinstance(module, _BatchNorm):
            weight_is_frozen = module.weight is not None and not module.weight.requires_grad
            if batch_norm == "frozen" or weight_is_frozen:
                still.add(name)
        elif name in auxiliary and not any(p.requires_grad for p in module.parameters()):
            still.add(name)
        if isinstance(module, _BatchNorm):
            separate(module)
            if batch_norm == "sync" and name not in still:
                synchronize(module, lambda: network.weight)
    network.eval_modules = frozenset(still)
    network.train(network.training)


def _stage_that_runs(network: Network, name: str, module: nn.Module) -> Stage | None:
    """The stage a submodule is run by; None for a container of several stages."""
    for stage in network.stages:
        steps = [step for step in stage.steps if isinstance(step, str)]
        if stage.owns_name(name) or any(is_below(name, step) for step in steps):
            return stage
    # What no stage names is run by a function: the dropout in ViT's embedding.
    is_leaf = next(module.children(), None) is None
    return network.stages[0] if is_leaf else None


def batch_norm_trains(network: Network) -> bool:
    """Whether any BatchNorm gathers statistics in training, as `freeze` has set it up."""
    modules = network.model.named_modules()
    return any(isinstance(m, _BatchNorm) and n not in network.eval_modules for n, m in modules)
