"""Weights between those a run started from and those it ended with: WiSE-FT, and model soups.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022: (1 - alpha) * start + alpha *
tuned. Wortsman et al., "Model soups", ICML 2022: the mean of several tuned models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl.atomic import to_json, write_text_atomically
from tl.engine import runtime
from tl.engine.evaluation_request import Request
from tl.engine.prepare import network_for
from tl.engine.runtime import Runtime
from tl.engine.saving import START
from tl.engine.score import measure, open_data
from tl.errors import UserError, brief
from tl.models import folders, published, saved
from tl.models.saved import SavedModel
from tl.tracking.console import open_console
from tl.tracking.tables import table

State = Mapping[str, Tensor]
ALPHAS = [i / 10 for i in range(11)]


def interpolate(
    asked: Request, others: Sequence[Path], alphas: Sequence[float] | None, save: Path | None
) -> dict[str, Any]:
    """Evaluate models between a start and the model that is asked about, and save the best.

    Args:
        others: models whose mean is the start; without them it is where the run started.
        alphas: from 0, the start, to 1; None: eleven of them, and with several others the one that
            is the mean of all.
        save: the folder that the best model goes to, if it is to.

    Returns:
        What ``interpolation.json`` holds: the start and the model in words, the data, a row for
        each alpha, and the best of these.

    Raises:
        UserError: the models are unlike, or the same; nothing says where the run started; what
            `tl.engine.score.score` raises.
    """
    _check_place(save)
    model = saved.load(asked.model)
    here = runtime.start(asked.config)
    tuned = _copy(model)
    if others:
        start = _mean([_loaded(other, model, asked.model) for other in others])
        name = " and ".join(map(str, others))
    else:
        start, name = _start_of(asked, model, here)
    if all(torch.equal(start[key], tuned[key]) for key in tuned):
        last = asked.run / "last" if asked.run is not None else "another model"
        raise UserError(
            f"{name} and {asked.model} are the same weights: there is nothing between them. If the "
            f"best model of a run is that of its first phase, try {last}"
        )
    if alphas is None:
        soup = [1 / (len(others) + 1)] if len(others) > 1 else []
        alphas = sorted({*ALPHAS, *soup})

    data, split, notes = here.first_on_each_node(lambda: open_data(asked, model.classes))
    with Path(os.devnull).open("w") as nowhere:
        console = open_console(None if here.is_main else nowhere)
        for note in notes:
            console.say(f"note: {note}")
        console.say(f"{data}: {len(split):,} images · {here.describe()}")
        console.say(f"from {name} (0) to {asked.model} (1)")
        rows = []
        for alpha in alphas:
            model.network.model.load_state_dict(mixed(start, tuned, alpha))
            result, bad = measure(asked, model, split, here)
            rows.append({"alpha": alpha, "accuracy": result.accuracy, "loss": result.loss})
        best = max(rows, key=lambda row: (row["accuracy"], -row["loss"]))
        for reason in sorted(bad.values()):
            console.say(f"left out, cannot be decoded: {reason}")
        cells = [[f"{r['alpha']:.4g}", r["accuracy"], r["loss"], _mark(r is best)] for r in rows]
        console.show(table("", ["alpha", "accuracy", "loss", ""], cells))
        report = {
            "start": name,
            "tuned": str(asked.model),
            "data": data,
            "rows": rows,
            "best": best,
        }
        if save is not None:
            model.network.model.load_state_dict(mixed(start, tuned, best["alpha"]))
            here.on_main(lambda: _save(model, asked, save, report))
            console.say(f"model: {save}, alpha {best['alpha']:.4g}, chosen on these images")
    here.wait()
    runtime.stop()
    return report


def mixed(start: State, tuned: State, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) * start + alpha * tuned, computed in float64; whole numbers are the tuned ones.

    BatchNorm's statistics are among them. With alpha 0 and 1 it is start and tuned, bit for bit.
    """
    return {
        name: torch.lerp(start[name].double(), tensor.double(), alpha).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tuned.items()
    }


def _mark(best: bool) -> str:
    return "best" if best else ""


def _copy(model: SavedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.model.state_dict().items()}


def _mean(states: Sequence[State]) -> dict[str, Tensor]:
    """Of each tensor; whole numbers are the first one's."""
    return {
        name: torch.stack([s[name].double() for s in states]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def _loaded(folder: Path, model: SavedModel, where: Path) -> dict[str, Tensor]:
    other = saved.load(folder)
    _check_alike(other, model, f"{folder} and {where}")
    return _copy(other)


def _start_of(asked: Request, model: SavedModel, here: Runtime) -> tuple[dict[str, Tensor], str]:
    """The weights that a run started from, and what they are in words."""
    if asked.run is not None and (asked.run / START).is_dir():
        return _loaded(asked.run / START, model, asked.model), str(asked.run / START)
    config = asked.config
    if asked.run is None or config.model.weights is None:
        why = "began with random weights" if asked.run is not None else "is of no run that is there"
        raise UserError(f"{asked.model} {why}: give a model to start from, --with DIR")
    here.first_on_each_node(lambda: published.download(config.model.name, config.model.weights))
    network, preprocessing, report = here.on_all(lambda: network_for(config, model.classes))
    start = SavedModel(network, model.classes, preprocessing)
    _check_alike(start, model, f"{report.source} and {asked.model}")
    tuned, state = _copy(model), _copy(start)
    state |= {name: tuned[name] for name in report.new}
    return state, report.source + (" with the tuned head" if report.new else "")


def _check_alike(a: SavedModel, b: SavedModel, which: str) -> None:
    """Raise UserError with all that differs between two models, if weights between them are none.

    Even classes in another order, or images of another size, make them unlike.
    """
    pairs = {
        "architecture": (a.network.architecture, b.network.architecture),
        "arguments": (a.network.arguments, b.network.arguments),
        "classes": (a.classes, b.classes),
        "preprocessing": (a.preprocessing.to_dict(), b.preprocessing.to_dict()),
    }
    lines = [f"  {w}: {brief(x)} and {brief(y)}" for w, (x, y) in pairs.items() if x != y]
    if lines:
        differences = "\n".join(lines)
        raise UserError(
            f"{which} are unlike, and there is nothing between them:\n{differences}\n"
            "Give two models of one architecture, for the same classes and the same input."
        )


def _check_place(save: Path | None) -> None:
    if save is None:
        return
    if save.exists() and not save.is_dir():
        raise UserError(f"--save {save} is a file; give the name of a folder")
    if folders.model_folder(save) is not None:
        raise UserError(f"--save {save} holds a model already; nothing was overwritten")


def _save(model: SavedModel, asked: Request, folder: Path, report: dict[str, Any]) -> None:
    try:
        data = folders.data_of(asked.model)
        saved.save(model.network, model.classes, model.preprocessing, folder, data=data)
        write_text_atomically(folder / "interpolation.json", to_json(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to --save {folder}: {error.strerror}") from error
