"""What is to be reached: the one place where these figures stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Target(NamedTuple):
    """A ratio that a part measures, and what it is to be."""

    what: str
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None
    """better than what is to be reached, and shown beside it"""
    only_gpu: bool = False


TARGETS = {
    "head_cold": Target(
        "head-only, whole command, times faster than Accelerate's example", at_least=12, aim=20
    ),
    "head_warm": Target("the same, with the cache of an earlier run", at_least=25),
    "finetune_peers": Target(
        "fine-tuning, whole command, times faster than the fastest peer", at_least=1.5
    ),
    "finetune_by_python": Target(
        "the same, both started by python, without a launcher", at_least=1.5
    ),
    "finetune_limit": Target(
        "fine-tuning, images/s in training, share of a training step on images in memory",
        at_least=0.9,
    ),
    "head_limit": Target(
        "head-only from the cache, images/s, share of the head alone on features in memory",
        at_least=0.9,
        only_gpu=True,
    ),
    "overhead_21_1": Target(
        "time of a step of 21 tiny layers, over a bare DDP loop's", at_most=1.1
    ),
    "overhead_21_2": Target("the same on two processes", at_most=1.1),
    "overhead_1_1": Target("time of a step of one tiny layer, over a bare DDP loop's", at_most=1.1),
    "overhead_1_2": Target("the same on two processes", at_most=1.1),
    "start": Target(
        "seconds from the command to the first step, over Accelerate's example", at_most=1.3
    ),
}


def verdicts(ratios: Mapping[str, Mapping[str, float]], gpu: bool) -> list[dict[str, Any]]:
    """Each target with the spread that was measured, None if it was not, and what came of it.

    The median decides. ``why`` is said where nothing was measured.
    """
    rows = []
    for key, target in TARGETS.items():
        measured = ratios.get(key)
        row = {"key": key, **target._asdict(), "measured": measured, "reached": None}
        if target.only_gpu and not gpu:
            row |= {"measured": None, "why": "not measured: no GPU"}
        elif measured is None:
            row["why"] = "not measured"
        elif target.at_least is not None:
            row["reached"] = measured["median"] >= target.at_least
        else:
            assert target.at_most is not None
            row["reached"] = measured["median"] <= target.at_most
        rows.append(row)
    return rows
