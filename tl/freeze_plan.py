"""The freeze plan, shown before a phase, and the proof after it that nothing frozen moved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl.freezing import head
from tl.models.network import Network
from tl.models.stages import is_below
from tl.models.synced_batch_norm import is_synchronized


@dataclass(frozen=True)
class StagePlan:
    """One line of the freeze plan."""

    stage: str
    depth: int
    """how many stages before the head"""
    parameters: int
    """adapters counted"""
    trainable: int
    batch_norm: str
    """``train``, ``sync``, ``frozen``, several of these, or ``-`` (none in this stage)."""
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
    for depth, stage in zip(range(len(network.stages))[::-1], network.stages, strict=True):
        owned = {n: p for n, p in network.named_weights() if stage.owns_name(n)}
        modes = {
            _mode(module)
            for name, module in network.model.named_modules()
            if isinstance(module, _BatchNorm) and stage.owns_name(name)
        }
        rates = sorted({lr_of[name] for name, p in owned.items() if p.requires_grad})
        rows.append(
            StagePlan(
                stage=stage.name,
                depth=depth,
                parameters=sum(p.numel() for p in owned.values()),
                trainable=sum(p.numel() for p in owned.values() if p.requires_grad),
                batch_norm=", ".join(sorted(modes)) or "-",
                lr=" to ".join(f"{rate:.2e}" for rate in {rates[0]: 0, rates[-1]: 0})
                if rates
                else "-",
            )
        )
    return rows


def _mode(layer: nn.Module) -> str:
    if not layer.training:
        return "frozen"
    return "sync" if is_synchronized(layer) else "train"


def random_and_frozen(network: Network, new: Iterable[str], pretrained: bool) -> list[str]:
    """A note where random parameters never train: allowed, and rarely meant.

    Args:
        new: names of tensors that no weights were loaded into.
        pretrained: whether weights were loaded at all.
    """
    frozen = {n for n, p in network.model.named_parameters() if not p.requires_grad}
    if frozen and not pretrained:
        return [f"the weights are random (model.weights is null), and {len(frozen)} are frozen"]
    stuck = frozen & set(new)
    notes = []
    if of_head := sorted(stuck & head(network)):
        notes.append(f"new, random and frozen: {', '.join(of_head)}")
    # Of an auxiliary classifier that a file lacks it is right: what is frozen needs no help.
    auxiliary = [stage.aux.name for stage in network.stages if stage.aux]
    body = {n for n in stuck - head(network) if not any(is_below(n, a) for a in auxiliary)}
    if body:
        stages = dict.fromkeys(s.name for s in network.stages if any(map(s.owns_name, body)))
        notes.append(f"{len(body)} new, random and frozen below the head: in {', '.join(stages)}")
    return notes


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
