"""Optimizers, their parameter groups, and learning rates as pure functions of the step.

The rate is set before every step from the step's number alone. There is no scheduler object to
prepare, save or step the wrong number of times (Accelerate steps a prepared one once for every
process).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tl.config import OptimizerConfig, ScheduleConfig


def base_rate(config: OptimizerConfig, depth: int) -> float:
    """The learning rate, at the top of the schedule, ``depth`` stages before the head.

    ``lr * layer_decay ** depth``, and ``lr * head_factor`` for the head itself. Dividing by 2.6
    from a layer to the one before is ULMFiT's discriminative fine-tuning (Howard and Ruder, ACL
    2018); factors of 0.65 to 0.9 are what transformers are fine-tuned with (Clark et al., ICLR
    2020; Bao et al., ICLR 2022).
    """
    return config.lr * (config.layer_decay**depth if depth else config.head_factor)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    depth_of: Callable[[str], int] = lambda name: 0,
) -> list[dict[str, Any]]:
    """Groups for an optimizer, of the parameters that train and of no others.

    Each has ``names`` beside ``params``, and ``base_lr``, which the schedule scales. Parameters of
    one rate and one weight decay are one group: a fused optimizer takes a kernel for each.

    Args:
        depth_of: how many stages before the head a parameter is (`Network.depth_of`), whatever of
            the stages trains. By default all are the head's.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        rate = base_rate(config, depth_of(name))
        decays = config.decay_norm_and_bias or parameter.ndim > 1
        decay = config.weight_decay if decays else 0.0
        new = {"params": [], "names": [], "lr": rate, "base_lr": rate, "weight_decay": decay}
        group = groups.setdefault((rate, decay), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimizer over ``groups``.

    It is a fused one: that takes a tensor ``found_inf`` which says, on the device, to leave a step
    out (`tl.engine.nonfinite`).
    """
    if config.name == "sgd":
        sgd = torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov and config.momentum > 0,
            fused=True,
        )
        if config.momentum > 0:
            # SGD makes these in its first step, without a value if that step is left out. From
            # zero the first step gives the same as PyTorch's, which starts with the gradient.
            for parameter in (p for group in sgd.param_groups for p in group["params"]):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    assert config.name == "adamw"
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(beta1, beta2), weight_decay=config.weight_decay, fused=True
    )


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """What the base rate is multiplied by at a step of a phase, counted from 0.

    Warm-up over w steps: (step + 1) / w. After it, with t = (step - w) / (total_steps - w):

    - constant: 1
    - step: gamma ** (epoch // step_epochs), as torch's StepLR; epochs count from the phase's start
    - cosine: final + (1 - final) (1 + cos(pi t)) / 2 (Loshchilov and Hutter, ICLR 2017)
    - poly: final + (1 - final) (1 - t) ** power
    - inverse: (1 + 10 t) ** -0.75 (Ganin et al., JMLR 2016)
    """
    warmup = max(schedule.warmup_steps, round(schedule.warmup_epochs * steps_per_epoch))
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(1, total_steps - warmup)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "step":
        return schedule.gamma ** (step // steps_per_epoch // schedule.step_epochs)
    if schedule.name == "inverse":
        return (1 + 10 * t) ** -0.75
    falling = (1 + math.cos(math.pi * t)) / 2 if schedule.name == "cosine" else (1 - t)
    if schedule.name == "poly":
        falling **= schedule.power
    return schedule.final + (1 - schedule.final) * falling


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's base rate; returns the highest rate, the one that is logged."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
