"""Strategies of several phases, and those whose phases follow from the network or the data.

A strategy is a function of its argument and of the top-level training keys that returns phases as
plain dictionaries, of what differs from those keys. One that has to know more returns, once it has
looked at its argument, a function of `Facts`, which a run calls when it has them. A short name is a
line in `tl.phases.STRATEGIES`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tl.config import Training
from tl.errors import UserError

PartialPhase = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a strategy may know of a run's network and data."""

    stages: tuple[str, ...]
    """names of the stages that have parameters, from the images to the head"""
    is_transformer: bool
    is_pretrained: bool
    image_size: int
    """pixels of a side of what the network gets"""
    pretrained_size: int
    """the same when its weights were trained"""
    classes: int
    train_images: int
    gradient_norms: Callable[[], Mapping[str, float]]
    """measures the norm of the gradient over that of the weights, for each of the stages; takes a
    pass over training images, and is the same on all processes"""


@dataclass(frozen=True)
class Spelled:
    """What a strategy stands for, now that the facts are known."""

    phases: list[PartialPhase]
    why: str
    """for people: what was decided, from what"""
    measured: Mapping[str, float] = field(default_factory=dict)
    """the `gradient_norms`, if they were asked for: the run keeps them"""


Later = Callable[[Facts], Spelled]
Strategy = Callable[[str | None, Training], list[PartialPhase] | Later]


def lp_ft(argument: str | None, training: Training) -> list[PartialPhase]:
    """lp_ft(factor): the head, then everything at a rate 10 (or so many) times lower

    Kumar et al., ICLR 2022: a random head's first gradients distort what the rest has learned. The
    head learns on the view of validation, whose features are computed once. Each phase has half
    of the epochs.
    """
    return _probe_and_tune(training, "full", _factor(argument, "lp_ft", 10))


def bottleneck(argument: str | None, training: Training) -> list[PartialPhase]:
    """bottleneck(factor): the head, then the last two stages at a rate 10 times lower

    A classifier on features that are computed once, then the last block with it. Each phase has
    half of the epochs.
    """
    return _probe_and_tune(training, "last_stages(2)", _factor(argument, "bottleneck", 10))


def _probe_and_tune(training: Training, train: str, factor: float) -> list[PartialPhase]:
    first, second = _parts(training, 2)
    slower = {"lr": float(f"{training.optimizer.lr / factor:.6g}")}
    return [
        {"name": "probe", "train": "head", "augment": "none", **first},
        {"name": "tune", "train": train, "optimizer": slower, **second},
    ]


def discriminative(argument: str | None, training: Training) -> list[PartialPhase]:
    """discriminative(factor): everything, each stage 2.6 times slower than the one after it

    Howard and Ruder, ACL 2018 (ULMFiT).
    """
    del training
    factor = _factor(argument, "discriminative", 2.6)
    return _decayed("discriminative", 1 / factor)


def layer_decay(argument: str | None, training: Training) -> list[PartialPhase]:
    """layer_decay(d): everything, at lr * d ** depth, the depth counted from the head; d = 0.75

    Clark et al., ICLR 2020; Bao et al., ICLR 2022.
    """
    del training
    decay = _number(argument, 0.75)
    if decay is None or not 0 < decay <= 1:
        raise UserError(
            f"layer_decay({argument}): takes a factor above 0 and not above 1, such as "
            "layer_decay(0.75)"
        )
    return _decayed("layer_decay", decay)


def _decayed(name: str, decay: float) -> list[PartialPhase]:
    return [{"name": name, "train": "full", "optimizer": {"layer_decay": decay}}]


def gradual(argument: str | None, training: Training) -> Later:
    """gradual(n): the head, then n stages more in each phase, until everything trains

    Howard and Ruder, ACL 2018 (ULMFiT). The epochs are divided evenly, and the last phase gets
    what is left over. Without n it is the least for which each phase has an epoch.
    """
    if argument is not None and not re.fullmatch("[1-9][0-9]{0,8}", argument):
        raise UserError(f"gradual({argument}): takes a number of stages, such as gradual(2)")
    key, total = _duration(training)

    def spelled(facts: Facts) -> Spelled:
        others = len(facts.stages) - 1
        least = max(1, math.ceil(others / max(1, total - 1)))
        n = int(argument) if argument else least
        cuts = [*range(others, 0, -n), 0]  # index of the first stage that trains
        if len(cuts) > total:
            mend = f", or gradual({least})" if total > 1 else ""
            raise UserError(
                f"gradual({n}) has {len(cuts)} phases for {others + 1} stages, and {key}={total}: "
                f"give {key}={len(cuts)}{mend}"
            )
        trains = {cut: f"from_stage({facts.stages[cut]})" for cut in cuts} | {
            others: "head",
            0: "full",
        }
        phases = [
            {"name": f"gradual{i + 1}", "train": trains[cut], **part}
            for i, (cut, part) in enumerate(zip(cuts, _parts(training, len(cuts)), strict=True))
        ]
        why = f"gradual: {others + 1} stages, {n} more in each of {len(cuts)} phases"
        return Spelled(phases, why)

    return spelled


def surgical(argument: str | None, training: Training) -> list[PartialPhase] | Later:
    """surgical(stage): that stage and the head; surgical: the stage of the highest gradient norm

    Lee et al., ICLR 2023. The norm of its gradient over that of its weights, over the training
    images before training, says by itself how much a stage has to change. A new head's are those
    that its random weights send; in the paper the classes stay, and so does the head.
    """
    del training
    if argument not in (None, "auto"):
        return [{"name": "surgical", "train": f"surgical({argument})"}]

    def spelled(facts: Facts) -> Spelled:
        norms = facts.gradient_norms()
        stages = facts.stages[:-1] or facts.stages
        best = max(stages, key=lambda stage: norms[stage])
        shown = ", ".join(f"{stage} {norms[stage]:.2e}" for stage in stages)
        why = f"surgical: {best} has the highest norm of its gradient over its weights ({shown})"
        return Spelled([{"name": "surgical", "train": f"surgical({best})"}], why, norms)

    return spelled


def auto(argument: str | None, training: Training) -> Later:
    """auto: one of the others, by the number and size of the images and the network

    After BiT-HyperRule (Kolesnikov et al., ECCV 2020), which sets the length and the images' size
    by the size of the data set; here these are the config's, and what trains is chosen.
    """
    if argument is not None:
        raise UserError(f"auto takes no argument, and was given auto({argument})")

    def spelled(facts: Facts) -> Spelled:
        rules: list[tuple[bool, str, str]] = [
            (not facts.is_pretrained, "full", "the weights are random"),
            (
                facts.train_images <= AUTO_FEW * facts.classes,
                "head",
                f"{facts.train_images:,} training images are {AUTO_FEW} or fewer a class",
            ),
            (
                facts.image_size < facts.pretrained_size / 2,
                "full",
                f"images of {facts.image_size} pixels look unlike those of {facts.pretrained_size} "
                "that the weights are from, to the first stages too",
            ),
            (
                facts.is_transformer,
                "layer_decay(0.75)",
                "the network is a transformer, whose first layers are to move little",
            ),
            (
                facts.train_images >= AUTO_MANY,
                "full",
                f"{facts.train_images:,} training images are {AUTO_MANY:,} or more",
            ),
            (True, "lp_ft", f"{facts.train_images:,} training images are under {AUTO_MANY:,}"),
        ]
        chosen, why = next((chosen, why) for holds, chosen, why in rules if holds)
        phases = {
            "full": [{"name": "full", "train": "full"}],
            "head": [{"name": "head", "train": "head"}],
            "layer_decay(0.75)": layer_decay("0.75", training),
            "lp_ft": lp_ft(None, training),
        }[chosen]
        return Spelled(phases, f"auto: {chosen}, as {why}")

    return spelled


AUTO_FEW = 5
AUTO_MANY = 20_000
"""BiT-HyperRule calls a data set of fewer images than this small."""


def _number(argument: str | None, default: float | None) -> float | None:
    try:
        return default if argument is None else float(argument)
    except ValueError:
        return None


def _factor(argument: str | None, strategy: str, default: float) -> float:
    factor = _number(argument, default)
    if factor is None or not 1 <= factor < math.inf:
        raise UserError(
            f"{strategy}({argument}): takes a factor of 1 or more that divides the rate, such as "
            f"{strategy}({default})"
        )
    return factor


def _duration(training: Training) -> tuple[str, int]:
    return ("epochs", training.epochs) if training.steps is None else ("steps", training.steps)


def _parts(training: Training, phases: int) -> list[PartialPhase]:
    """The epochs, or steps, divided evenly, one each at least; the last gets what is left over."""
    key, total = _duration(training)
    each = max(1, total // phases)
    return [{key: each}] * (phases - 1) + [{key: max(1, total - each * (phases - 1))}]
