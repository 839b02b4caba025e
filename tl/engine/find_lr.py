"""The learning-rate range test: a short training whose rate rises until the loss does.

It is a loop of its own, of the parts that the training loop is made of: the same images in each
step, the same objective, groups and gradient. No checkpoint, no evaluation, nothing that is kept of
the weights.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tl.arguments import Loaded
from tl.atomic import write_json_atomically
from tl.data.sampler import train_sampler
from tl.data.split import Source
from tl.data.streams import BadImages, default_workers, open_stream
from tl.data.transforms import augmented_view
from tl.engine import run_dir, runtime, strategy
from tl.engine.compiling import compile_for
from tl.engine.given import given_for
from tl.engine.gradient import add_gradient
from tl.engine.inputs import give_keys, to_network
from tl.engine.nonfinite import Guard, Policy
from tl.engine.prepare import describe_weights, load_network, open_images
from tl.engine.run import check_phases
from tl.engine.runtime import Runtime
from tl.errors import UserError
from tl.freezing import freeze, trainable_names
from tl.lr_curve import (
    RULE,
    SETTLED,
    SMOOTHING,
    is_over,
    lowest_step,
    rate_at,
    smoothed,
    suggestion,
)
from tl.mistakes import blamed_on, dotted
from tl.models.lora import adapt
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing
from tl.objectives import Given, make_objective, objective_class
from tl.optim import make_optimizer, parameter_groups, set_lr
from tl.randomness import seed_of
from tl.tracking.console import ConsoleTracker, open_console
from tl.tracking.lr_plot import plot_lr_curve

SAY_SECONDS = 5.0
"""between two lines on how far it has come"""


def find_lr(
    loaded: Loaded, *, steps: int, lr_min: float, lr_max: float, output: Path
) -> dict[str, Any]:
    """Try rates on the first phase, show the advice, and write the curve and its picture.

    Args:
        steps: at most; the rate rises from ``lr_min`` to ``lr_max`` over as many.
        output: the folder for ``lr_curve.json`` and ``lr_curve.png``.

    Returns:
        What ``lr_curve.json`` holds, the same on every process.

    Raises:
        UserError: a mistake in the config, the data or the weights; or no rate to suggest.
        FloatingPointError: the very first loss is not finite.
    """
    here = runtime.start(loaded.config)
    console = open_console(None if here.is_main else run_dir.nowhere())
    console.say(here.describe())
    check_phases(loaded, here)
    source, _ = open_images(loaded, here, console)
    network, preprocessing, report = load_network(loaded, source, here)
    console.say(describe_weights(report))
    if loaded.later is not None:
        pretrained = report.loaded > 0
        loaded = strategy.spell_out(
            loaded, source, network, preprocessing, pretrained, None, here, console.say
        )
        console.say(loaded.decided["why"])
        check_phases(loaded, here)
    phase = loaded.phases[0]
    if "relationship" in objective_class(phase.objective).needs:
        raise UserError(
            f"objective={phase.objective} takes a pass over the images before it can train: find "
            "the rate with objective=supervised"
        )
    if objective_class(phase.objective).streams != ("source",):
        raise UserError(
            f"objective={phase.objective} trains on a target domain as well: find the rate with "
            "objective=supervised"
        )
    if phase.optimizer.lr == 0:
        raise UserError(
            "optimizer.lr=0: rates of groups are kept in proportion to it, so give any other"
        )
    given = here.on_all(lambda: given_for(loaded, source, network))
    with blamed_on(loaded.origins, "phases", 0, "train"):
        adapt(network, phase.train, seed_of("lora", loaded.config.seed, 0))
        freeze(network, trainable_names(network, phase.train), phase.batch_norm)
    what = f"{loaded.config.model.name}, {phase.train} trains, {phase.optimizer.name}"
    console.say(f"{what}: {steps} steps, rates from {lr_min:g} to {lr_max:g}")

    rates = [rate_at(step, steps, lr_min, lr_max) for step in range(steps)]
    losses, end = _losses(loaded, source, network, given, preprocessing, here, console, rates)
    advice = suggestion(rates, losses)
    result = {
        "suggestion": advice,
        "rule": RULE,
        "key": _key(loaded),
        "end": end,
        "lr": rates[: len(losses)],
        "loss": losses,
        "smoothed": smoothed(losses),
        "smoothing": SMOOTHING,
        "lr_min": lr_min,
        "lr_max": lr_max,
        "steps": steps,
        "phase": phase.name,
        "config": loaded.values(),
    }
    console.say(end)
    if not losses:
        raise FloatingPointError(f"{end}. Give a lower --lr-min, or mixed_precision=no")
    here.on_main(lambda: _write(result, what, output))
    console.say(f"written: {output / 'lr_curve.json'} and lr_curve.png")
    _advise(result, console)
    runtime.stop()
    return result


def _losses(
    loaded: Loaded,
    source: Source,
    network: Network,
    given: Given,
    preprocessing: Preprocessing,
    here: Runtime,
    console: ConsoleTracker,
    rates: list[float],
) -> tuple[list[float], str]:
    """The mean loss over the global batch of each step, before it moves the weights at its rate.

    Returns:
        Them, the same on every process, and why there are no more of them.
    """
    config, phase = loaded.config, loaded.phases[0]
    sampler = train_sampler(
        phase, source, config.seed, first_epoch=0, rank=here.rank, world_size=here.world_size
    )
    sampler = replace(sampler, last_step=len(rates))
    workers = config.data.workers
    stream = open_stream(
        source.train,
        augmented_view(preprocessing, phase.augment, phase.crop_scale),
        sampler,
        seed=config.seed,
        size=preprocessing.crop_size,
        channels=preprocessing.channels,
        decode=config.data.decode,
        workers=default_workers(here.processes_on_node) if workers is None else workers,
        pin_memory=here.device.type == "cuda",
    )
    micro_batches = iter(stream)
    bad_images = BadImages(config.data.bad_images, config.data.max_bad_images)

    network.to(here.device).to(memory_format=torch.channels_last)
    torch.manual_seed(seed_of("objective", config.seed, 0))
    objective = make_objective(network, phase, given).to(here.device)
    groups = parameter_groups(objective.trained_parameters(), phase.optimizer, network.depth_of)
    optimizer = make_optimizer(groups, phase.optimizer)
    if config.compile:
        compile_for(objective, sampler.sizes_of_full_steps())
    trained = here.accelerator.prepare(objective)
    parameters = [parameter for _, parameter in objective.trained_parameters()]
    guard = Guard(optimizer, here.accelerator.scaler, Policy.of("stop"))

    losses: list[float] = []
    said = time.monotonic()
    trained.train()
    for step, rate in enumerate(rates):
        here.seed(seed_of("step", config.seed, step, here.rank))
        # Groups keep the proportion that the config gives them; `rate` is optimizer.lr's.
        set_lr(optimizer, rate / phase.optimizer.lr)
        batch = [next(micro_batches) for _ in range(sampler.micro_batches_in(step))]
        for micro_batch in batch:
            bad_images.meet(micro_batch.pop("bad"))
        batch = [to_network(part, here.device, preprocessing) for part in batch]
        for micro_batch in batch:
            give_keys(micro_batch, config.seed, step, step // sampler.steps_per_epoch)
        images = None if bad_images.policy == "skip" else sampler.images_in(step)
        sums, _ = add_gradient(here, guard, trained, batch, images, step / len(rates))
        guard.unscale()
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if phase.clip_norm is not None:
            clip_grads_with_norm_(parameters, phase.clip_norm, norm)
        bad_gradient = guard.judge(norm)
        guard.step()
        for parameter in parameters:
            parameter.grad = None

        total = sums.reduce(here.all_reduce)  # waits for the device
        loss = total["loss"] / max(1, total["images"])
        at = f"at rate {rate:.2g}, step {step + 1} of {len(rates)}"
        if not math.isfinite(loss):
            return losses, f"stopped {at}: the loss is not finite"
        losses.append(loss)
        # In fp16 a gradient that overflows is how the scaler finds its scale.
        if here.accelerator.scaler is None and bool(bad_gradient):
            return losses, f"stopped {at}: the gradient is not finite"
        if is_over(losses):
            return losses, f"stopped {at}: the smoothed loss is over 4 times its lowest"
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            console.say(f"{at}: loss {loss:.4f}")
    return losses, f"all {len(rates)} steps are done"


def _key(loaded: Loaded) -> str:
    """The key that the first phase's rate is set by: its own, if it was given one."""
    own = loaded.own[0].get("optimizer")
    given = isinstance(own, dict) and "lr" in own
    return dotted(("phases", 0, "optimizer", "lr") if given else ("optimizer", "lr"))


def _write(result: dict[str, Any], title: str, output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json_atomically(output / "lr_curve.json", result)
        curve = (result["lr"], result["loss"], result["smoothed"])
        advice = (lowest_step(result["loss"]), result["suggestion"])
        plot_lr_curve(*curve, *advice, title, output / "lr_curve.png")
    except OSError as error:
        raise UserError(f"cannot write to --output {output}: {error.strerror}") from error


def _advise(result: dict[str, Any], console: ConsoleTracker) -> None:
    """Raise UserError if there is nothing to suggest."""
    curve, advice = result["smoothed"], result["suggestion"]
    if advice is None:
        raise UserError(
            f"no rate to suggest: after {SETTLED} steps the smoothed loss never fell. Give a lower "
            f"--lr-min than {result['lr_min']:g}, or more --steps"
        )
    if min(curve) == curve[-1]:
        console.say(
            "note: the loss was still falling at the last rate; with a higher --lr-max the "
            "suggestion may be higher"
        )
    console.say(f"suggested, {result['rule']}:\n{result['key']}={advice:g}")
