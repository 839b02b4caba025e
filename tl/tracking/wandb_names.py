"""What a run is called in W&B, and which others it is shown with: pure functions of its config.

Among fifty runs of a project a name has to say what was trained: `head-resnet18-flowers-seed0`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl.atomic import from_json, to_json
from tl.config.wandb import MOST_LETTERS, MOST_LETTERS_OF_A_TAG
from tl.tracking.tracker import SWEEP

Values = Mapping[str, Any]
MOST_LETTERS_OF_A_PART = 40
NAMED_ANYWAY = ("seed", "strategy", "phases", "objective", "model.name", "data.source", "data.root")
# What may differ between two runs of a group: the seed, and what changes no result.
NOT_OF_A_GROUP = {
    "seed", "run_dir", "tracking", "checkpoint", "cache", "best", "num_processes", "threads",
    "time_limit", "hang_timeout", "disk_errors",
}  # fmt: skip


def run_name(config: Values, swept: Sequence[str] = ()) -> str:
    """``strategy-model-data-seed``, the objective if it is none of the usual, and what is swept.

    Args:
        config: the resolved config of a run, as plain values.
        swept: dotted keys in which the runs of a sweep differ.
    """
    parts = what_trains(config)
    for key in swept:
        if key not in NAMED_ANYWAY and (value := _at(config, key)) is not None:
            parts.append(f"{key.rpartition('.')[2]}={_text(value)}")
    end = f"-seed{config['seed']}"
    return "-".join(map(_short, parts))[: MOST_LETTERS - len(end)] + end


def group_name(config: Values, environ: Mapping[str, str]) -> str:
    """An array of Slurm's is a group; else runs of one config that differ in the seed alone are."""
    if array := environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{environ.get('SLURM_JOB_NAME', 'array')}-{array}"[:MOST_LETTERS]
    same = {key: value for key, value in config.items() if key not in NOT_OF_A_GROUP}
    apart = ("workers", "root", "source_root", "target_root")  # the name says which data it is
    same["data"] = {key: value for key, value in config["data"].items() if key not in apart}
    same["views"] = config["cache"]["views"]
    digest = hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()
    end = f"-{digest[:8]}"
    return "-".join(map(_short, what_trains(config)))[: MOST_LETTERS - len(end)] + end


def tags_of(config: Values) -> list[str]:
    """Strategy, objectives, network and data: what runs are filtered by."""
    objectives = [phase["objective"] for phase in config["phases"] or ()] or [config["objective"]]
    found = [_strategy(config), *objectives, _network(config), data_name(config["data"])]
    return list(dict.fromkeys(tag[:MOST_LETTERS_OF_A_TAG] for tag in found if tag))


def what_trains(config: Values) -> list[str]:
    """The parts of a name that runs with other seeds share."""
    objective = config["objective"]
    parts = [_strategy(config), *([objective] if objective != "supervised" else [])]
    return [*parts, _network(config), data_name(config["data"])]


def data_name(data: Values) -> str:
    """A short name of the ``data`` keys: that of a folder, of a data set, or of two domains."""
    root = data["root"] or data["source_root"]
    source = data["source"]
    if data["source_domains"]:
        name = "+".join(map(str, data["source_domains"]))
    elif ":" in source:
        name = source.rpartition(":")[2]
    elif root:
        name = Path(root).name or root
    else:
        name = "digits" if source == "auto" else source
    target = data["target_domain"] or (data["target_root"] and Path(data["target_root"]).name)
    if not target:
        return name
    only_target = not (root or source != "auto")
    return str(target) if only_target else f"{name}-to-{target}"


def swept_keys(run_dir: Path) -> list[str]:
    """The keys in which the runs of a sweep differ, if that folder is one of a sweep's."""
    try:
        words = from_json((run_dir.resolve().parent / SWEEP).read_bytes())["swept"]
        return [str(word).partition("=")[0] for word in words]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _strategy(config: Values) -> str:
    if config["strategy"]:
        return str(config["strategy"]).rpartition(":")[2]
    return "+".join(str(phase["name"]) for phase in config["phases"])


def _network(config: Values) -> str:
    return str(config["model"]["name"]).removeprefix("timm:")


def _at(config: Values, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value)


def _short(text: str) -> str:
    """Without what cannot be seen, and not so long that it hides the other parts."""
    text = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return text if len(text) <= MOST_LETTERS_OF_A_PART else text[: MOST_LETTERS_OF_A_PART - 1] + "…"
