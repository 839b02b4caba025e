"""The training loop: one phase, from top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tl.data.sampler import TrainSampler
from tl.data.streams import Batch
from tl.data.transforms import augmented_view, plain_view
from tl.engine import checkpoint
from tl.engine.evaluate import evaluate, to_device
from tl.engine.state import Run
from tl.errors import OnOneProcessError, UserError
from tl.freeze_plan import assert_unchanged, frozen_digests
from tl.freezing import batch_norm_trains, freeze, trainable_names
from tl.metrics import Sums
from tl.models import saved
from tl.models.dropout import image_keys
from tl.objectives import Objective, objective_class
from tl.optim import lr_factor, make_optimizer, parameter_groups, set_lr
from tl.randomness import seed_of
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
    if progress.phase_step == 0:
        progress.frozen = frozen_digests(network)
    # What an objective adds starts the same on every process.
    torch.manual_seed(seed_of("objective", config.seed, index))
    objective = objective_class(phase.objective)(network, phase).to(runtime.device)
    groups = parameter_groups(objective.trained_parameters(), phase.optimizer)
    plain_optimizer = make_optimizer(groups, phase.optimizer)
    if resumed is not None:
        objective.load_own_state(checkpoint.part("objective", resumed))
        checkpoint.load_optimizer(plain_optimizer, resumed)
    trained, optimizer = accelerator.prepare(objective, plain_optimizer)

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
        gradient_accumulation=phase.gradient_accumulation,
    )
    view = augmented_view(run.preprocessing, phase.augment, phase.crop_scale)
    stream = run.open_stream(run.source.train, view, sampler)
    validation = run.open_stream(
        run.source.val, plain_view(run.preprocessing), run.evaluation_sampler(phase)
    )

    trained.train()
    sums = Sums(runtime.device)
    micro_batches = iter(stream)
    clock = time.perf_counter()
    for step in range(progress.phase_step, total_steps):
        run.interrupt.check()
        # Randomness is a function of the step's number and the images, so a resumed run draws the
        # same and no generator has to be saved: dropout goes by the images' keys, and whatever an
        # objective or a network draws besides by this seed.
        torch.manual_seed(seed_of("step", config.seed, progress.step, runtime.rank))
        lr = set_lr(plain_optimizer, lr_factor(phase.schedule, step, total_steps, steps_per_epoch))
        batch = [next(micro_batches) for _ in range(sampler.micro_batches_in(step))]
        for micro_batch in batch:
            run.bad_images.meet(micro_batch.pop("bad"))
        batch = [to_device(micro_batch, runtime.device) for micro_batch in batch]
        images_here = torch.stack([micro_batch["weight"].sum() for micro_batch in batch]).sum()
        global_count: Tensor | int = sampler.images_in(step)
        if run.bad_images.policy == "skip":  # only then may there be fewer
            global_count = runtime.all_reduce(images_here).clamp(min=1)

        for micro_batch in batch:
            micro_batch["key"] = image_keys(config.seed, progress.step, micro_batch["id"])
            micro_batch["global_count"] = global_count
            meets = micro_batch is batch[-1]  # the processes reduce their gradients once a step
            with contextlib.nullcontext() if meets else accelerator.no_sync(trained):
                output = trained(micro_batch, step / total_steps)
                # Each process holds its share of the global mean. DDP divides the sum of the
                # gradients by the number of processes, which this takes back.
                accelerator.backward(output["loss"] * runtime.world_size)
            sums.add(**{"loss": output.pop("loss").double() * global_count, **output})
        if phase.clip_norm is not None:
            accelerator.clip_grad_norm_(trained.parameters(), phase.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

        sums.add(images=images_here)
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
            _check_finite("training", means["train/loss"], progress.step)
            progress.images += int(images)
            progress.training_seconds += now - clock
            speed = images / (now - clock)
            run.trackers.log(
                {**where, **means, "lr": lr, "images_per_second": speed}, progress.step
            )
            clock = now

        if epoch_ends:
            if batch_norm_trains(network):
                _share_batch_norm(run)
            progress.last = _validate(run, validation)
            _check_finite("validation", progress.last["val/loss"], progress.step)
            run.trackers.log({**where, **progress.last}, progress.step)
            if _is_better(progress.last, progress.best):
                progress.best = {**progress.last, "step": progress.step}
        if phase_ends:
            assert_unchanged(progress.frozen, frozen_digests(network), phase.name)
        if saves:
            _check_weights(objective, progress.step)
            save_checkpoint(run, index, objective, plain_optimizer, phase_ends)
            # After the checkpoint: should the run die in between, it makes the model up from that.
            if progress.best.get("step") == progress.step:
                save_best(run)
            clock = time.perf_counter()


def save_checkpoint(
    run: Run,
    index: int,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    phase_ends: bool,
) -> None:
    """Commit a checkpoint, from the main process; the others wait, so none runs ahead of it.

    At the end of a phase the optimizer is left out, as the next phase starts a new one.
    """
    progress, scaler = run.progress, run.runtime.accelerator.scaler
    if phase_ends:
        progress.phase, progress.phase_step = index + 1, 0
    progress.wall_seconds = time.perf_counter() - run.started
    if run.runtime.is_main:
        state = {**progress.to_dict(), "scaler": scaler.state_dict() if scaler else None}
        tensors = checkpoint.under("network", run.network.model.state_dict())
        if not phase_ends:
            tensors |= checkpoint.under("objective", objective.own_state())
            tensors |= checkpoint.optimizer_tensors(optimizer)
        checkpoint.write(
            run.run_dir / "checkpoints", progress.step, state, tensors, run.config.checkpoint.keep
        )
    run.runtime.wait()


def save_best(run: Run) -> None:
    """Make the network, as it is, the model of the run."""
    if run.runtime.is_main:
        saved.save(run.network, run.source.classes, run.preprocessing, run.run_dir / "model")


def _validate(run: Run, validation: Iterable[Batch]) -> dict[str, float]:
    """Accuracy and loss on the validation images; bad images are named, once each."""
    _share_bad_images(run)
    result = evaluate(
        run.runtime,
        run.network,
        validation,
        len(run.source.classes),
        run.bad_images,
        run.interrupt.check,
    )
    _share_bad_images(run)
    return {"val/accuracy": result.accuracy, "val/loss": result.loss}


ADVICE = (
    "Try a lower optimizer.lr, a warm-up (schedule.warmup_steps), clip_norm=1, or "
    "mixed_precision=no."
)


def _check_finite(kind: str, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the {kind} loss is {loss} at step {step}. {ADVICE}")


def _check_weights(objective: Objective, step: int) -> None:
    """Poisoned weights are never committed. Every process has the same weights, so all agree."""
    named = objective.trained_parameters()
    finite = torch.stack([parameter.detach().isfinite().all() for _, parameter in named]).tolist()
    bad = [name for (name, _), fine in zip(named, finite, strict=True) if not fine]
    if bad:
        raise FloatingPointError(
            f"{len(bad)} parameters, such as {bad[0]}, are no numbers at step {step}. {ADVICE}"
        )


def _is_better(new: dict[str, float], best: dict[str, Any]) -> bool:
    """Higher validation accuracy; with the same, lower loss."""
    if not best:
        return True
    return (new["val/accuracy"], -new["val/loss"]) > (best["val/accuracy"], -best["val/loss"])


def _share_batch_norm(run: Run) -> None:
    """Give every process the main one's BatchNorm statistics, as DDP does before each step."""
    for module in run.network.modules():
        if isinstance(module, _BatchNorm):
            for buffer in module.buffers():
                run.runtime.broadcast_(buffer)


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
