"""The training loop: one phase, from top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tl.data.sampler import TrainSampler
from tl.data.streams import Batch, open_stream
from tl.data.transforms import augmented_view, plain_view
from tl.engine import checkpoint
from tl.engine.evaluate import evaluate, to_device
from tl.engine.state import Run
from tl.errors import OnOneProcessError, UserError
from tl.freeze_plan import assert_unchanged, frozen_digests
from tl.freezing import freeze, trainable_names
from tl.metrics import Sums
from tl.models import saved
from tl.models.dropout import image_keys
from tl.objectives import objective_class
from tl.optim import lr_factor, make_optimizer, parameter_groups, set_lr
from tl.tracking.tracker import Metrics


def train_phase(run: Run, index: int, resumed: dict[str, Tensor] | None = None) -> None:
    """Train phase ``index`` of a run, from ``run.progress.phase_step`` to its end.

    Args:
        resumed: tensors of the checkpoint the phase is continued from, if it is.

    Raises:
        RuntimeError: something frozen moved (promise 1).
        FloatingPointError: the loss is no longer a number.
    """
    phase, runtime, network, progress = run.phases[index], run.runtime, run.network, run.progress
    accelerator, config = runtime.accelerator, run.config

    # What trains. A fresh objective, optimizer and DDP wrapper for every phase: parameters that
    # start to train after DDP has wrapped them are never synchronised, without a word.
    freeze(network, trainable_names(network, phase.train), phase.batch_norm)
    before = frozen_digests(network)
    objective = objective_class(phase.objective)(network, phase).to(runtime.device)
    groups = parameter_groups(objective.trained_parameters(), phase.optimizer)
    plain_optimizer = make_optimizer(groups, phase.optimizer)
    batch_norm_trains = _batch_norm_trains(run)
    trained, optimizer = accelerator.prepare(objective, plain_optimizer)
    if resumed is not None:
        checkpoint.load_module("objective", _without_network(objective), resumed)
        checkpoint.load_optimizer(plain_optimizer, resumed)

    # On which data.
    steps_per_epoch, total_steps = run.steps_per_epoch(phase), run.steps_of(phase)
    sampler = TrainSampler(
        num_images=len(run.source.train),
        global_batch_size=phase.global_batch_size,
        seed=config.seed,
        first_epoch=run.first_epoch(index),
        first_step=progress.phase_step,
        last_step=total_steps,
        rank=runtime.rank,
        world_size=runtime.world_size,
    )
    stream_settings: dict[str, Any] = {
        "seed": config.seed,
        "size": run.preprocessing.crop_size,
        "workers": run.workers,
        "pin_memory": runtime.device.type == "cuda",
    }
    view = augmented_view(run.preprocessing, phase.augment, phase.crop_scale)
    stream = open_stream(run.source.train, view, sampler, **stream_settings)
    validation = open_stream(
        run.source.val, plain_view(run.preprocessing), run.evaluation_sampler(phase),
        **stream_settings,
    )  # fmt: skip

    trained.train()
    sums = Sums(runtime.device)
    clock = time.perf_counter()
    for step, batch in enumerate(stream, start=progress.phase_step):
        run.interrupt.check()
        # Randomness is a function of the step's number and the images, so a resumed run draws the
        # same and no generator has to be saved: dropout goes by the images' keys below, and
        # whatever an objective or network draws besides by this seed.
        torch.manual_seed(_seed(config.seed, progress.step, runtime.rank))
        lr = set_lr(plain_optimizer, lr_factor(phase.schedule, step, total_steps, steps_per_epoch))
        run.bad_images.meet(batch.pop("bad"))
        batch = to_device(batch, runtime.device)
        batch["key"] = image_keys(config.seed, progress.step, batch["id"])
        weights = batch["weight"].sum()
        global_count = runtime.all_reduce(weights).clamp(min=1)

        for micro, is_last in _parts(batch, phase.gradient_accumulation):
            with contextlib.nullcontext() if is_last else accelerator.no_sync(trained):
                output = trained({**micro, "global_count": global_count}, step / total_steps)
                # Each process holds its share of the global mean. DDP divides the sum of the
                # gradients by the number of processes, which this takes back.
                accelerator.backward(output["loss"] * runtime.world_size)
            sums.add(**{"loss": output.pop("loss").double() * global_count, **output})
        if phase.clip_norm is not None:
            accelerator.clip_grad_norm_(trained.parameters(), phase.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

        sums.add(images=weights)
        progress.step += 1
        progress.phase_step = step + 1
        where: Metrics = {
            "phase": phase.name,
            "epoch": sampler.first_epoch + step // steps_per_epoch + 1,
        }
        phase_ends = step + 1 == total_steps
        epoch_ends = phase_ends or (step + 1) % steps_per_epoch == 0

        every = config.checkpoint.every_steps
        saves = epoch_ends or (every is not None and progress.step % every == 0)

        if saves or progress.step % config.tracking.log_every == 0:
            means = sums.reduce(runtime.all_reduce)  # waits for the device
            images, now = means.pop("images"), time.perf_counter()
            means = {f"train/{name}": total / max(1, images) for name, total in means.items()}
            _check_finite(means["train/loss"], progress.step)
            progress.images += int(images)
            progress.training_seconds += now - clock
            speed = images / (now - clock)
            run.trackers.log(
                {**where, **means, "lr": lr, "images_per_second": speed}, progress.step
            )
            clock = now

        if epoch_ends:
            _share_bad_images(run)
            if batch_norm_trains:
                _broadcast_batch_norm(run)
            result = evaluate(runtime, network, validation, len(run.source.classes), run.bad_images)
            _share_bad_images(run)
            progress.last = {"val/accuracy": result.accuracy, "val/loss": result.loss}
            run.trackers.log({**where, **progress.last}, progress.step)
            if _is_better(progress.last, progress.best):
                progress.best = {**progress.last, "step": progress.step}
                if runtime.is_main:
                    folder = run.run_dir / "model"
                    saved.save(network, run.source.classes, run.preprocessing, folder)
            if phase_ends:
                assert_unchanged(before, frozen_digests(network), phase.name)
        if saves:
            save_checkpoint(run, index, _without_network(objective), plain_optimizer, phase_ends)
            clock = time.perf_counter()
    accelerator.free_memory()


def save_checkpoint(
    run: Run,
    index: int,
    objective: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    phase_ends: bool,
) -> None:
    """Commit a checkpoint, from the main process; the others wait, so none runs ahead of it.

    At the end of a phase the optimizer is left out, as the next phase starts a new one.
    """
    progress = run.progress
    if phase_ends:
        progress.phase, progress.phase_step = index + 1, 0
    progress.wall_seconds = time.perf_counter() - run.started
    if run.runtime.is_main:
        state = progress.to_dict()
        tensors = checkpoint.module_tensors("network", run.network.model)
        if not phase_ends:
            tensors |= checkpoint.module_tensors("objective", objective)
            tensors |= checkpoint.optimizer_tensors(optimizer)
            if (scaler := run.runtime.accelerator.scaler) is not None:
                state["scaler"] = scaler.state_dict()
        checkpoint.write(
            run.run_dir / "checkpoints", progress.step, state, tensors, run.config.checkpoint.keep
        )
    run.runtime.wait()


def _without_network(objective: torch.nn.Module) -> torch.nn.Module:
    """What an objective holds besides the network, such as a domain discriminator."""
    own = torch.nn.Module()
    for name, child in objective.named_children():
        if name != "network":
            own.add_module(name, child)
    return own


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _parts(batch: Batch, parts: int) -> Iterator[tuple[Batch, bool]]:
    """Cut a batch into micro-batches; the flag is true for the last.

    A share with fewer images than parts gives fewer: processes only meet in the last one.
    """
    size = math.ceil(len(batch["label"]) / parts)
    for start in range(0, len(batch["label"]), size):
        micro = {name: value[start : start + size] for name, value in batch.items()}
        yield micro, start + size >= len(batch["label"])


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the training loss is {loss} at step {step}. Try a lower optimizer.lr, a warm-up "
            "(schedule.warmup_steps), clip_norm=1, or mixed_precision=no."
        )


def _is_better(new: dict[str, float], best: dict[str, Any]) -> bool:
    """Higher validation accuracy; with the same, lower loss."""
    if not best:
        return True
    return (new["val/accuracy"], -new["val/loss"]) > (best["val/accuracy"], -best["val/loss"])


def _batch_norm_trains(run: Run) -> bool:
    run.network.train()
    return any(isinstance(m, _BatchNorm) and m.training for m in run.network.modules())


def _broadcast_batch_norm(run: Run) -> None:
    """Give every process the main one's BatchNorm statistics, as DDP does before each step."""
    if run.runtime.world_size == 1:
        return
    for module in run.network.modules():
        if isinstance(module, _BatchNorm):
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)


def _share_bad_images(run: Run) -> None:
    """Tell every process of the bad images that any has met; each file is named once."""
    if run.bad_images.policy == "skip":
        met = run.runtime.from_all(list(run.bad_images.reasons.items()))
        try:
            run.bad_images.meet(met)
        except OnOneProcessError as error:  # by now all processes know
            raise UserError(str(error)) from None
        for name, reason in sorted(run.bad_images.reasons.items()):
            if name not in run.progress.bad_images:
                run.progress.bad_images[name] = reason
                run.console.say(f"left out, cannot be decoded: {reason}")
