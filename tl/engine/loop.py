"""The training loop: one phase, from top to bottom."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tl.data.streams import batches_in
from tl.ema import Ema
from tl.engine import checkpoint
from tl.engine.command_age import seconds_since_command
from tl.engine.compiling import compile_for
from tl.engine.given import find_relationship
from tl.engine.gradient import add_gradient
from tl.engine.inputs import give_keys, to_network
from tl.engine.nonfinite import Guard, Policy, check_weights
from tl.engine.phase_data import phase_data
from tl.engine.saving import finish_writing, make_up_best, raise_failure, save_checkpoint
from tl.engine.state import Run, Stopwatch
from tl.engine.target_predictions import predict_target
from tl.engine.validate import validate
from tl.engine.wishes import wishes
from tl.errors import Preempted
from tl.freeze_plan import assert_unchanged, frozen_digests
from tl.freezing import freeze, trainable_names
from tl.metrics import Sums
from tl.models.lora import adapt
from tl.objectives import make_objective, objective_class
from tl.optim import lr_factor, make_optimizer, parameter_groups, set_lr
from tl.randomness import seed_of
from tl.tracking.tracker import Metrics


def train_phase(run: Run, index: int, resumed: dict[str, Tensor] | None = None) -> None:
    """Train phase ``index`` of a run, from ``run.progress.phase_step`` to its end.

    Args:
        resumed: tensors of the checkpoint within the phase that it goes on from, if there is one.

    Raises:
        Preempted: there was a reason to stop, and a checkpoint is written.
        FloatingPointError: a loss, a gradient or a weight is not finite.
        RollBack: the same, and the run is to go back to its last checkpoint.
        RuntimeError: something frozen moved (promise 1).
        OSError: something could not be written.
    """
    phase, runtime, network, progress = run.phases[index], run.runtime, run.network, run.progress
    accelerator, config, agreement = runtime.accelerator, run.config, run.agreement

    # Which images are in which step.
    steps_per_epoch, total_steps = run.steps_per_epoch(phase), run.steps_of(phase)
    sampler = run.sampler(index)

    # What trains. A fresh objective, optimizer and DDP wrapper for every phase: parameters that
    # start to train after DDP has wrapped them are never synchronised, without a word.
    adapt(network, phase.train, seed_of("lora", config.seed, index))
    freeze(network, trainable_names(network, phase.train), phase.batch_norm)
    if resumed is None:
        progress.frozen = frozen_digests(network)
    given = run.given
    if "relationship" in objective_class(phase.objective).needs and given.relationship is None:
        given.relationship = find_relationship(run)
    # What an objective adds starts the same on every process.
    torch.manual_seed(seed_of("objective", config.seed, index))
    objective = make_objective(network, phase, given).to(runtime.device)
    groups = parameter_groups(objective.trained_parameters(), phase.optimizer, network.depth_of)
    optimizer = make_optimizer(groups, phase.optimizer)
    if resumed is not None:
        if network.adapters is not None:
            network.adapters.load(checkpoint.part("lora", resumed), "the checkpoint")
        objective.load_own_state(checkpoint.part("objective", resumed))
        checkpoint.load_optimizer(optimizer, resumed)
    ema = Ema(network, phase.ema)
    if resumed is not None:
        ema.load(checkpoint.part("ema", resumed), "the checkpoint")
        make_up_best(run, ema)
    if config.compile:
        compile_for(objective, sampler.sizes_of_full_steps())
    trained = accelerator.prepare(objective)
    parameters = [parameter for _, parameter in objective.trained_parameters()]

    # On which data.
    with run.report.times.of("features"):
        data = phase_data(run, index)
    micro_batches = iter(data.training(sampler))
    validation = data.validation()

    policy = Policy.of(config.nonfinite)
    guard = Guard(optimizer, accelerator.scaler, policy)
    sums = Sums(runtime.device)
    sums.start_from(progress.sums, here=runtime.is_main)
    stopwatch = Stopwatch(progress)
    lr, stepped = 0.0, False
    trained.train()
    while True:
        # ---- Between two steps: what is due, and what have the processes told each other?
        step = progress.phase_step
        run.status.reached(progress.step)
        due = progress.evaluation_due
        logs = stepped and (due or progress.step % config.tracking.log_every == 0)
        saves = run.saves_at(progress.step) if stepped else run.saves_before_training
        heard = agreement.hear(everything=logs or saves or due)
        if agreement.stop or agreement.save:
            heard += agreement.hear(everything=True)
        for heard_of, verdict in heard:
            if fault := guard.fault(verdict):
                run.console.say(policy.leave_out(heard_of, fault, len(progress.left_out)))
                progress.left_out.append([heard_of, heard_of])
        if agreement.fail:
            raise_failure(run)

        epoch = sampler.first_epoch + math.ceil(step / steps_per_epoch)
        where: Metrics = {"phase": phase.name, "epoch": epoch}
        if logs:
            means = sums.reduce(runtime.all_reduce)  # waits for the device
            stopwatch.lap()
            count = means.pop("images")
            means = {f"train/{name}": total / max(1, count) for name, total in means.items()}
            speed = count / (progress.training_seconds - progress.seconds_at_line)
            progress.images += int(count)
            progress.seconds_at_line = progress.training_seconds
            run.trackers.log(
                {**where, **means, "lr": lr, "images_per_second": speed}, progress.step
            )
        stopwatch.stop()
        if due and not agreement.stop:
            with ema.in_place(), run.report.times.of("evaluation"):
                saves |= validate(run, validation, where, policy)
        at_its_end = step == total_steps or run.ends_early
        if not (at_its_end or agreement.stop):
            predict_target(run, data, objective, step // steps_per_epoch)
        phase_ends = at_its_end and not progress.evaluation_due
        if phase_ends or saves or agreement.save or agreement.stop:
            check_weights(objective.trained_parameters(), policy, progress)
            if phase_ends:
                assert_unchanged(progress.frozen, frozen_digests(network), phase.name)
                ema.keep()  # the next phase gets the network that was evaluated,
                network.merge()  # and a plain one
            with run.report.times.of("checkpoint"):
                save_checkpoint(run, objective, optimizer, ema, sums, phase_ends)
            agreement.save = False
        if agreement.stop and not run.is_over:
            finish_writing(run, last_checkpoint=True)
            reason = next(filter(None, runtime.from_all([run.stop_requests.reason])))
            which = "auto" if run.config.run_dir else run.run_dir  # one that was given no name
            raise Preempted(
                f"stopped after step {progress.step}, {reason}; to go on: --resume {which}"
            )
        if phase_ends:
            data.close()
            return

        # ---- A step. Randomness is a function of its number and the images, so a resumed run draws
        # the same and no generator has to be saved: dropout goes by the images' keys, and whatever
        # an objective or a network draws besides by this seed.
        stopwatch.start()
        run.console.goes_on(progress.step)
        runtime.seed(seed_of("step", config.seed, progress.step, runtime.rank))
        lr = set_lr(optimizer, lr_factor(phase.schedule, step, total_steps, steps_per_epoch))
        run.watchdog.mark(f"at step {progress.step + 1}, waiting for images")
        batch = [next(micro_batches) for _ in range(sampler.micro_batches_in(step))]
        run.watchdog.mark(f"at step {progress.step + 1}, training")
        for micro_batch in batch:
            for part in batches_in(micro_batch):
                run.bad_images.meet(part.pop("bad"))
        batch = [to_network(part, runtime.device, run.preprocessing) for part in batch]
        for micro_batch in batch:
            in_epoch = sampler.first_epoch + step // steps_per_epoch
            give_keys(micro_batch, config.seed, progress.step, in_epoch)
        images: int | None = sampler.images_in(step)
        if run.bad_images.policy == "skip":  # only then may there be fewer
            images = None
        step_sums, loss = add_gradient(runtime, guard, trained, batch, images, step / total_steps)

        guard.unscale()
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if phase.clip_norm is not None:
            clip_grads_with_norm_(parameters, phase.clip_norm, norm)
        left_out = guard.judge(norm)
        guard.step()
        ema.update(step, left_out)
        for parameter in parameters:
            parameter.grad = None
        sums.add_all(step_sums, unless=left_out)

        stepped = True
        if run.seconds_to_first_step is None:
            run.seconds_to_first_step = seconds_since_command()
        progress.step += 1
        progress.phase_step = step + 1
        progress.evaluation_due = run.evaluates_after(step + 1)
        agreement.tell(
            progress.step,
            wishes(run),
            bad_loss=~loss.isfinite(),
            bad_gradient=left_out,
        )
