"""Training state on disk, such that a run may die at any moment.

A checkpoint is written into a staging folder, every file is fsynced, a manifest with sha256 sums
is written last, and then the folder is renamed. Older checkpoints go only after that, and so does
one of the same step, which steps aside under another name meanwhile. Reading takes the newest whose
sums agree. Tensors are safetensors and the rest is JSON: nothing that is read is executed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl.atomic import from_json, sync
from tl.errors import UserError, brief
from tl.models import tensor_files, weight_files
from tl.models.saved import sha256

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
ASIDE = "-replaced"


def write(
    folder: Path, step: int, state: dict[str, Any], tensors: dict[str, Tensor], keep: int
) -> Path:
    """Commit a checkpoint as ``folder/step-N`` and delete all but the ``keep`` newest.

    Args:
        tensors: on the CPU and contiguous, as `tensor_files.copies` are.

    Raises:
        OSError: the disk is full or not writable; what was there before is intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        tensor_files.write(tensors, staging / TENSORS)
        (staging / STATE).write_text(json.dumps({"format": FORMAT, "step": step, **state}))
        sums = {name: sha256(staging / name) for name in (TENSORS, STATE)}
        (staging / MANIFEST).write_text(json.dumps({"sha256": sums}, indent=2))
        for name in (TENSORS, STATE, MANIFEST):
            sync(staging / name)
        sync(staging)
        final = folder / f"step-{step}"
        aside = folder / f"step-{step}{ASIDE}"
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        staging.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    for leftover in (*folder.glob(f"step-*{ASIDE}"), *folder.glob(".staging-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    # A newer one is damaged, or the run would not have come past here again.
    newer = [checkpoint for checkpoint in committed(folder) if _step(checkpoint) > step]
    older = [checkpoint for checkpoint in committed(folder) if _step(checkpoint) < step]
    for superfluous in (*newer, *older[keep - 1 :]):
        shutil.rmtree(superfluous, ignore_errors=True)
    return final


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-").removesuffix(ASIDE))


def committed(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest first, whether they are whole or not."""
    entries = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in entries if re.fullmatch(rf"step-\d+({ASIDE})?", path.name)]
    return sorted(found, key=lambda path: (_step(path), ASIDE not in path.name), reverse=True)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint: ``""`` if its manifest and all sums agree."""
    try:
        for name in (MANIFEST, TENSORS, STATE):
            if not (checkpoint / name).is_file():
                return f"{name} is missing, or no file"
        sums = from_json((checkpoint / MANIFEST).read_bytes())["sha256"]
        for name in (TENSORS, STATE):
            if sha256(checkpoint / name) != sums[name]:
                return f"{name} does not have the sha256 sum of its manifest"
        state = from_json((checkpoint / STATE).read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        return f"format {brief(found)}, this version reads {FORMAT}"
    return ""


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; each damaged one that is passed over is said."""
    for checkpoint in committed(folder):
        if not (reason := damage(checkpoint)):
            return checkpoint
        say(f"{checkpoint} is damaged ({reason}), trying the one before")
    return None


def read(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and tensors (on the CPU) of a checkpoint.

    Raises:
        UserError: it does not verify, or its tensors are none.
    """
    if reason := damage(checkpoint):
        raise UserError(f"{checkpoint} is no whole checkpoint: {reason}")
    return read_state(checkpoint), weight_files.safetensors(checkpoint / TENSORS)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint that verifies."""
    return from_json((checkpoint / STATE).read_bytes())


# ------------------------------------------------------------------- what a checkpoint is made of


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with names ``prefix/NAME``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def part(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `under`: of a checkpoint's tensors those with the prefix, without it."""
    start = f"{prefix}/"
    return {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state under ``optimizer/PARAMETER/KEY``: by name, so that its order is free."""
    return {
        f"optimizer/{name}/{key}": torch.as_tensor(value)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`, for an optimizer over the same parameters.

    Raises:
        UserError: a tensor has neither its parameter's shape nor a single value.
    """
    saved = optimizer.state_dict()
    index = 0
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if state := part(f"optimizer/{name}", tensors):
                if any(t.numel() > 1 and t.shape != parameter.shape for t in state.values()):
                    raise UserError(f"the checkpoint's optimizer state does not fit {name}")
                saved["state"][index] = state
            index += 1
    # load_state_dict puts each tensor on the device, and in the type, that the optimizer wants.
    optimizer.load_state_dict(saved)
    # What has a parameter's shape gets its layout (channels_last), which the fast kernels want.
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)
