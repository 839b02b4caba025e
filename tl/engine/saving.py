"""What a run writes while it trains: checkpoints and the best model, behind training's back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from tl.config import Phase
from tl.ema import Ema
from tl.engine import checkpoint
from tl.engine.state import Run
from tl.engine.wishes import writing_failed
from tl.errors import PeerFailed
from tl.freezing import trainable_names
from tl.metrics import Sums
from tl.models import saved, tensor_files
from tl.models.lora import is_lora
from tl.models.network import Network, head_parameters
from tl.objectives import Objective

START = "start"
"""the folder, in that of a run, of the model that its first phase has probed"""


def checkpoint_bytes(network: Network, phases: Sequence[Phase]) -> int:
    """About how large the largest checkpoint of a run is: weights, averages, moments.

    What an objective has of its own, such as a discriminator, is not counted.
    """
    tensors = network.model.state_dict()
    size = {name: tensor.nbytes for name, tensor in tensors.items()}
    largest = 0
    for phase in phases:
        trains = sum(size[name] for name in trainable_names(network, phase.train))
        moments = 2 if phase.optimizer.name == "adamw" else 1
        largest = max(largest, (moments + (phase.ema is not None)) * trains)
    return sum(size.values()) + largest


def save_checkpoint(
    run: Run,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    sums: Sums,
    phase_ends: bool = False,
) -> None:
    """Begin to write a checkpoint, and the model if this step's is the best. Called by all.

    Training goes on when the main process has copied the tensors; the others wait for nothing. At
    the end of a phase the optimizer is left out, as the next phase starts a new one. So are
    adapters and averages: they are the network's own weights by then.
    """
    progress, scaler = run.progress, run.runtime.accelerator.scaler
    if phase_ends:
        progress.phase, progress.phase_step = progress.phase + 1, 0
        progress.to_surpass, progress.waits = None, 0
    progress.sums = sums.so_far(run.runtime.all_reduce)
    progress.wall_seconds = time.perf_counter() - run.started
    if not run.runtime.is_main:
        return
    run.writer.wait()  # two copies of the training state would not always fit into memory
    began = time.monotonic()
    network = tensor_files.copies(run.network.model.state_dict())
    tensors = checkpoint.under("network", network)
    if not phase_ends:
        rest = checkpoint.under("objective", objective.own_state())
        rest |= checkpoint.under("ema", ema.state())
        if run.network.adapters is not None:
            rest |= checkpoint.under("lora", dict(run.network.adapters.named()))
        tensors |= tensor_files.copies(rest | checkpoint.optimizer_tensors(optimizer))
    state = {**progress.to_dict(), "scaler": scaler.state_dict() if scaler else None}
    if progress.best.get("step") == progress.step:
        plain = phase_ends or (run.network.adapters is None and not ema.state())
        run.unsaved_best = network if plain else _evaluated(run, ema)
    folder, keep = run.run_dir / "checkpoints", run.config.checkpoint.keep

    def write() -> None:
        try:
            checkpoint.write(folder, state["step"], state, tensors, keep)
        finally:
            # After the checkpoint: should the run die in between, it makes the model up from that.
            save_best(run)

    run.writer.start(write, began)


def _evaluated(run: Run, ema: Ema) -> dict[str, Tensor]:
    """The network that is evaluated, as it is now: the average, with the adapters in it."""
    with ema.in_place():
        return tensor_files.copies(run.network.merged_state())


def make_up_best(run: Run, ema: Ema | None = None) -> None:
    """Write the best model if it is that of the step that a run goes on from.

    The run may have died between its checkpoint and this.
    """
    if run.runtime.is_main and run.progress.best.get("step") == run.progress.step:
        run.unsaved_best = _evaluated(run, ema or Ema(run.network, None))
        save_best(run)


def save_start(run: Run) -> None:
    """Begin to write what `tl interpolate` starts from, after a first phase that probed.

    If that trained the heads alone, the network is now the pretrained one with heads that fit. It
    is on the disk before any later checkpoint is.
    """
    trained = trainable_names(run.network, run.phases[0].train)
    probed = trained <= head_parameters(run.network) and not is_lora(run.phases[0].train)
    if not (probed and run.runtime.is_main):
        return
    run.writer.wait()
    state, folder = tensor_files.copies(run.network.model.state_dict()), run.run_dir / START
    run.writer.start(lambda: _save_model(run, folder, state), time.monotonic())


def _save_model(run: Run, folder: Path, state: dict[str, Tensor]) -> None:
    saved.save(run.network, run.source.classes, run.preprocessing, folder, state, run.config.data)


def save_best(run: Run) -> None:
    """Write the best model, if it has not been written yet. Where that fails it stays to be."""
    if run.unsaved_best is not None:
        _save_model(run, run.run_dir / "model", run.unsaved_best)
        run.unsaved_best = None


def raise_failure(run: Run) -> NoReturn:
    """End this process for what the main one could not write; that one says it."""
    raise run.writer.error or PeerFailed()


def finish_writing(run: Run, last_checkpoint: bool = False) -> None:
    """Wait until all is written that was begun.

    Args:
        last_checkpoint: the run is to go on from it, so it has to be there.

    Raises:
        OSError: something could not be written that the run cannot do without.
    """
    if run.runtime.is_main:
        run.writer.wait()
        if (last_checkpoint and run.writer.error) or writing_failed(run):
            raise_failure(run)
        save_best(run)
