"""Which parameters train, what follows from that, and the proof that the rest did not move.

A freezing strategy is a function of a network and an argument that returns the names of the
parameters that train. Everything else is derived: ``requires_grad``, the frozen prefix (the
longest run of leading stages in which nothing trains) and the modules that stay in eval mode.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl.errors import UserError, unknown
from tl.models.network import Network, head_parameters
from tl.models.stages import Stage, is_below
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
    if argument is None or not argument.isdecimal() or int(argument) < 1:
        raise UserError(f"{strategy} takes a number of stages, such as {strategy}(2)")
    return int(argument)


def _no_argument(argument: str | None, strategy: str) -> None:
    if argument:
        raise UserError(f"{strategy} takes no argument, and was given {strategy}({argument})")


def full(network: Network, argument: str | None = None) -> Names:
    """Everything trains."""
    _no_argument(argument, "full")
    return frozenset(_names(network))


def head(network: Network, argument: str | None = None) -> Names:
    """The last stage trains: the layer whose outputs are the classes."""
    _no_argument(argument, "head")
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


def norm(network: Network, argument: str | None = None) -> Names:
    """Weights and biases of the normalisation layers train, and the heads, auxiliary ones too."""
    _no_argument(argument, "norm")
    selected = set(head_parameters(network))
    for module_name, module in network.model.named_modules():
        if isinstance(module, NORMALISATIONS) or "norm" in type(module).__name__.lower():
            selected |= {
                f"{module_name}.{name}" for name, _ in module.named_parameters(recurse=False)
            }
    return frozenset(selected)


def bias(network: Network, argument: str | None = None) -> Names:
    """All biases train, and the heads, auxiliary ones too (BitFit: Ben Zaken et al., ACL 2022)."""
    _no_argument(argument, "bias")
    biases = {name for name in _names(network) if name.rpartition(".")[2] == "bias"}
    return frozenset(biases | head_parameters(network))


FREEZING: dict[str, Callable[[Network, str | None], Names]] = {
    "full": full,
    "head": head,
    "last_stages": last_stages,
    "from_stage": from_stage,
    "regex": regex,
    "norm": norm,
    "bias": bias,
}


def trainable_names(network: Network, train: str) -> Names:
    """The names of the parameters that train, for a phase's `train`.

    Raises:
        UserError: an unknown strategy or stage, or one that selects nothing.
    """
    name, argument = parse_call(train, "train")
    if ":" in name:
        names = frozenset(load_object(name, "freezing strategy")(network, argument))
        if stray := names - set(_names(network)):
            raise UserError(f"{name} returned {sorted(stray)[:3]}, which are no parameters")
    elif name in FREEZING:
        names = FREEZING[name](network, argument)
    else:
        raise unknown("freezing strategy", name, FREEZING, f"train: {train}")
    if not names:
        raise UserError(f"train: {train} leaves nothing to train")
    return names


def _owned(network: Network, stages: Iterable[str]) -> Names:
    wanted = set(stages)
    return frozenset(name for name in _names(network) if network.stage_of(name) in wanted)


def freeze(network: Network, names: Names, batch_norm: str = "train") -> None:
    """Let exactly the parameters ``names`` train, and derive the rest.

    Modules stay in eval mode when nothing at or below them trains. Inside a stage that trains that
    is narrowed to BatchNorm: one whose own weight is frozen keeps its statistics, and with
    ``batch_norm="frozen"`` all do; dropout there goes on firing.
    """
    for name, parameter in network.model.named_parameters():
        parameter.requires_grad_(name in names)
    trains = [any(stage.owns_name(name) for name in names) for stage in network.stages]
    network.frozen_prefix = trains.index(True)
    evals = set()
    for module_name, module in network.model.named_modules():
        if not module_name:
            continue
        stage = next((s for s in network.stages if _runs(s, module_name)), None)
        if stage is None and next(module.children(), None) is None:
            stage = network.stages[0]  # run by a function: the dropout in ViT's embedding
        if stage is not None and not trains[network.stages.index(stage)]:
            evals.add(module_name)
        elif isinstance(module, _BatchNorm):
            affine = [f"{module_name}.{n}" for n, _ in module.named_parameters(recurse=False)]
            weight_frozen = f"{module_name}.weight" in affine and (
                f"{module_name}.weight" not in names
            )
            if batch_norm == "frozen" or weight_frozen:
                evals.add(module_name)
        elif (
            stage is not None
            and stage.aux is not None
            and module_name == stage.aux.name
            and not any(is_below(name, module_name) for name in names)
        ):
            # An auxiliary classifier of which nothing trains would only cost time.
            evals.add(module_name)
    network.eval_modules = frozenset(evals)
    network.train(network.training)


def _runs(stage: Stage, module: str) -> bool:
    """Whether a submodule is a stage's. What has no parameters, such as dropout, is not owned."""
    steps = [step for step in stage.steps if isinstance(step, str)]
    return stage.owns_name(module) or any(is_below(module, step) for step in steps)


# --------------------------------------------------------------------------- the plan and the proof


@dataclass(frozen=True)
class StagePlan:
    """One line of the freeze plan."""

    stage: str
    parameters: int
    trainable: int
    batch_norm: str
    """``train``, ``frozen``, ``mixed`` or ``-`` (none in this stage)."""
    lr: str
    """The base learning rate of what trains, a range where there are several, ``-`` for none."""

    @property
    def frozen(self) -> int:
        return self.parameters - self.trainable


def freeze_plan(network: Network, lr_of: Mapping[str, float]) -> list[StagePlan]:
    """What each stage does in the phase that `freeze` has set up.

    Args:
        lr_of: the base learning rate of every parameter that trains, by name.
    """
    network.train()
    rows = []
    for stage in network.stages:
        owned = {n: p for n, p in network.model.named_parameters() if stage.owns_name(n)}
        modes = {
            module.training
            for name, module in network.model.named_modules()
            if isinstance(module, _BatchNorm) and stage.owns_name(name)
        }
        rates = sorted({lr_of[name] for name, p in owned.items() if p.requires_grad})
        rows.append(
            StagePlan(
                stage=stage.name,
                parameters=sum(p.numel() for p in owned.values()),
                trainable=sum(p.numel() for p in owned.values() if p.requires_grad),
                batch_norm={0: "-", 2: "mixed"}.get(
                    len(modes), "train" if True in modes else "frozen"
                ),
                lr=" to ".join(f"{rate:.1e}" for rate in {rates[0]: 0, rates[-1]: 0})
                if rates
                else "-",
            )
        )
    return rows


def random_and_frozen(network: Network, new: Iterable[str], pretrained: bool) -> list[str]:
    """A note where random parameters never train: allowed, and rarely meant.

    Args:
        new: names of tensors that no weights were loaded into.
        pretrained: whether weights were loaded at all.
    """
    frozen = {n for n, p in network.model.named_parameters() if not p.requires_grad}
    if frozen and not pretrained:
        return [f"the weights are random (model.weights is null), and {len(frozen)} are frozen"]
    stuck = sorted(frozen & set(new) & head(network))
    return [f"new, random and frozen: {', '.join(stuck)}"] if stuck else []


def frozen_tensors(network: Network) -> dict[str, Tensor]:
    """All that must not move in this phase: frozen parameters, buffers of modules in eval mode."""
    network.train()
    in_eval = {name for name, module in network.model.named_modules() if not module.training}
    frozen: dict[str, Tensor] = {
        name: p for name, p in network.model.named_parameters() if not p.requires_grad
    }
    frozen |= {
        name: buffer
        for name, buffer in network.model.named_buffers()
        if name.rpartition(".")[0] in in_eval
    }
    return frozen


def frozen_digests(network: Network) -> dict[str, str]:
    """sha256 of each tensor of `frozen_tensors`, by name; two of these are compared bit for bit."""
    digests = {}
    for name, tensor in frozen_tensors(network).items():
        flat = tensor.detach().contiguous().flatten().cpu()
        digests[name] = hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
    return digests


def assert_unchanged(before: Mapping[str, str], after: Mapping[str, str], phase: str) -> None:
    """Fail if anything frozen moved during a phase.

    Raises:
        RuntimeError: names what moved. This is a defect of the program or of an objective from
            outside, never of the user's input.
    """
    moved = sorted(name for name in before if after.get(name) != before[name])
    if moved:
        more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
        raise RuntimeError(
            f"phase {phase}: frozen tensors changed: {', '.join(moved[:5])}{more}. Frozen parts "
            "must not move; the run is not what it claims to be."
        )


def count_parameters(network: Network) -> tuple[int, int]:
    """Number of trainable and of frozen parameters."""
    parameters = list(network.model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return trainable, sum(p.numel() for p in parameters) - trainable
