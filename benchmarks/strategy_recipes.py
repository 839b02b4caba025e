"""What `strategies.py` compares: each recipe is keys of a config, over those that all share.

Two rates, whatever the strategy: 0.003 for a new head (AdamW), 0.0001 for pretrained layers, and
between them for a few more parameters. With 0.0001 for all, the head too, seed 0 of full
fine-tuning had 0.856 on hymenoptera and 0.515 on cartoon; with both rates 0.876 and 0.693.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Keys = dict[str, Any]


@dataclass(frozen=True)
class Set:
    """A data set, and how it is cut."""

    folder: str
    keys: Keys
    train_per_class: int | None = None
    """None: it has train/ and val/"""


@dataclass(frozen=True)
class Recipe:
    """A strategy or an objective, as keys."""

    keys: Keys
    interpolate: str = ""
    """`tl interpolate` after the run: ``{run}`` is its folder, ``{val}`` the test images'"""
    leaves: str = "last"
    """the model folder in the run's folder that is tested"""


SETS = {
    "hymenoptera": Set("hymenoptera", {"epochs": 6}),
    # Ten images a class to train on, all 2,274 others to test on.
    "cartoon": Set("pacs/cartoon", {"epochs": 12, "data.max_val": 70}, train_per_class=10),
}
COMMON: Keys = {
    "model.name": "squeezenet1_0",
    "data.image_size": 128,  # a third of the arithmetic of 224: all of it in some hours
    "global_batch_size": 16,
    "optimizer.name": "adamw",
    "optimizer.lr": 0.0001,
    "optimizer.head_factor": 30,
    "optimizer.weight_decay": 0.05,
    "schedule.name": "cosine",
    "tracking.trackers": "[jsonl]",
    "evaluate_every_steps": 1000,  # at the end alone
}
FASTER: Keys = {"optimizer.lr": 0.001, "optimizer.head_factor": 3}
"""pretrained layers get less than this by the strategy, or only some of their parameters train"""


def _full(**keys: Any) -> Recipe:
    return Recipe({"strategy": "full", **keys})


RECIPES: dict[str, Recipe] = {
    "full, random weights": _full(
        **{"model.weights": "null", "optimizer.lr": 0.001, "optimizer.head_factor": 1}
    ),
    "full": _full(),
    "head": Recipe({"strategy": "head", "augment": "none"}),
    "head, augmented": Recipe({"strategy": "head"}),
    "bottleneck": Recipe({"strategy": "bottleneck", **FASTER}),
    "last_stages(3)": Recipe({"strategy": "last_stages(3)"}),
    "lp_ft": Recipe({"strategy": "lp_ft", **FASTER}),
    "lp_ft, then WiSE-FT at 0.5": Recipe(
        {"strategy": "lp_ft", **FASTER},
        interpolate="{run}/last {val} --with {run}/start --alphas 0.5 --save {run}/between",
        leaves="between",
    ),
    "gradual": Recipe({"strategy": "gradual"}),
    "discriminative": Recipe({"strategy": "discriminative", **FASTER}),
    "layer_decay(0.75)": Recipe({"strategy": "layer_decay(0.75)", **FASTER}),
    "bias": Recipe({"strategy": "bias", **FASTER}),
    "freeze_embed": Recipe({"strategy": "freeze_embed"}),
    "surgical": Recipe({"strategy": "surgical"}),
    "lora(8)": Recipe({"strategy": "lora(8)", **FASTER}),
    "auto": Recipe({"strategy": "auto", **FASTER}),
    "head on the stages to fire6": Recipe(
        {"strategy": "head", "model.reuse.upto": "fire6", "augment": "none", "optimizer.lr": 0.001}
    ),
    "full, l2_sp": _full(objective="l2_sp"),
    "full, delta": _full(objective="delta"),
    "full, bss": _full(objective="bss"),
    "full, co_tuning": _full(objective="co_tuning"),
    "full, lwf": _full(objective="lwf"),
    "full, mixup": _full(mixup=0.2),
    "full, cutmix": _full(cutmix=1.0),
    "full, label smoothing": _full(label_smoothing=0.1),
    "full, ema": _full(ema=0.99),
}
