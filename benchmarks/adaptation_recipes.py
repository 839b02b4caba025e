"""What `adaptation.py` compares: each recipe is keys of a config, over those that all share."""

from __future__ import annotations

from typing import Any

Keys = dict[str, Any]

DIRECTIONS = {"photo to cartoon": ("photo", "cartoon"), "cartoon to photo": ("cartoon", "photo")}
STEPS, EVERY = 400, 100

COMMON: Keys = {
    "model.name": "squeezenet1_0",
    "data.image_size": 128,  # within a point or two of 160, at half the time
    "model.bottleneck": 256,
    # The last fire module, the bottleneck and the head: what comes before is computed once.
    "strategy": "last_stages(3)",
    "augment": "none",
    "steps": STEPS,
    "evaluate_every_steps": EVERY,
    "global_batch_size": 32,  # and as many of the target
    "optimizer.name": "sgd",
    "optimizer.lr": 0.001,
    "optimizer.head_factor": 10,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 0.001,
    "schedule.name": "inverse",
    "tracking.trackers": "[jsonl]",
    "checkpoint.keep": 1,
}


def _of(objective: str, **options: Any) -> Keys:
    pairs = ", ".join(f"{key}: {str(value).lower()}" for key, value in options.items())
    return {"objective": objective, "objective_options": "{" + pairs + "}"}


RECIPES: dict[str, Keys] = {
    "source only": _of("supervised"),
    "AdaBN": _of("adabn"),
    "Deep CORAL": _of("coral"),
    "Deep CORAL of the features": _of("coral", layer="features", strength=100),
    "DAN": _of("dan"),
    "JAN": _of("jan"),
    "DANN": _of("dann"),
    "CDAN": _of("cdan"),
    "CDAN+E": _of("cdan", entropy=True),
    "BSP": _of("bsp"),
    "MDD": _of("mdd"),
    "AFN": _of("afn"),
    "MCC": _of("mcc"),
    "CDAN+MCC": _of("cdan_mcc"),
    "FixMatch": {**_of("fixmatch"), "cache.views": 4},  # of the strong view; 400 steps are 5 rounds
    "SHOT, without the source": {
        **_of("shot"),
        "strategy": "null",
        "phases": "[{name: shot, train: regex(^(features.12|bottleneck))}]",
    },
    "source, DANN, MCC in phases": {
        "strategy": "null",
        "phases": "[{name: source, train: last_stages(2), steps: 50},"
        " {name: align, train: last_stages(3), steps: 250, objective: dann},"
        " {name: sharpen, train: last_stages(3), steps: 100, objective: mcc}]",
    },
}

WITHOUT_SOURCE = ("SHOT, without the source",)
"""those that begin with the model of "source only" and see nothing of the source"""
