"""The evaluation at the end of an epoch: on the validation images, by all processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch.nn.modules.batchnorm import _BatchNorm

from tl.data.streams import Batch
from tl.engine import reporting
from tl.engine.evaluate import Evaluation, evaluate
from tl.engine.evaluate_target import TargetEvaluation, evaluate_target
from tl.engine.nonfinite import Policy, not_finite
from tl.engine.state import EarlyStop, Run
from tl.engine.wishes import stop_agreed
from tl.errors import OnOneProcessError, UserError
from tl.freezing import batch_norm_trains
from tl.selection import has_waited_enough, is_better, waited
from tl.tracking.tracker import Metrics


def validate(
    run: Run, validation: Mapping[str, Iterable[Batch]], where: Metrics, policy: Policy
) -> bool:
    """Evaluate, log it, note the best, and see whether the phase is to end early.

    Returns False if there was a reason to stop before the end.

    Bad images are named, once each.

    Args:
        validation: the batches of ``val``, labelled, and of ``target``; one of them or both.

    Raises:
        FloatingPointError, RollBack: the loss is not finite.
    """
    progress = run.progress
    run.console.evaluates()
    metrics: dict[str, float] = {}
    of_val: Evaluation | None = None
    watch = reporting.watch(run)
    share_batch_norm(run)
    _share_bad_images(run)
    for part, batches in validation.items():
        result: Evaluation | TargetEvaluation | None
        arguments = (
            run.runtime,
            run.network,
            run.preprocessing,
            batches,
            len(run.source.classes),
            run.bad_images,
            lambda: stop_agreed(run, "evaluating"),
        )
        if part == "val":
            result = of_val = evaluate(*arguments, watch)
        else:
            result = evaluate_target(*arguments)
        _share_bad_images(run)
        if result is None:
            return False
        metrics |= result.metrics()
    if not all(math.isfinite(value) for value in metrics.values()):
        not_finite("the validation loss is not finite", policy, progress)
    # All decide by the same numbers, to the last bit.
    progress.last = {**run.runtime.from_main(metrics)}
    progress.evaluation_due = False
    run.trackers.log({**where, **progress.last}, progress.step)
    is_best = is_better(progress.last, progress.best, run.config.chosen_best)
    if is_best:
        progress.best = {**progress.last, "step": progress.step}
    _look_for_the_end(run)
    reporting.evaluated(run, watch, of_val, is_best)
    return True


def _look_for_the_end(run: Run) -> None:
    """Note whether the phase has got better, and say so if it ends for that it has not."""
    progress, phase, best = run.progress, run.phases[run.progress.phase], run.config.chosen_best
    progress.to_surpass, progress.waits = waited(
        progress.last[best.metric], progress.to_surpass, progress.waits, best, phase.early_stopping
    )
    at_its_end = progress.phase_step == run.steps_of(phase)
    if has_waited_enough(progress.waits, phase.early_stopping) and not at_its_end:
        why = (
            f"no {best.metric} better than {progress.to_surpass:.4g} in {progress.waits} "
            f"evaluation{'s' if progress.waits > 1 else ''}"
        )
        progress.early_stops.append(
            EarlyStop(
                index=progress.phase,
                phase=phase.name,
                phase_steps=progress.phase_step,
                step=progress.step,
                why=why,
            )
        )
        run.console.say(f"phase {phase.name} ends early, after step {progress.step}: {why}")
        run.console.expect(run.plan)


def share_batch_norm(run: Run) -> None:
    """Give every process the main one's BatchNorm statistics, as DDP does before each step."""
    if not batch_norm_trains(run.network):
        return
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
