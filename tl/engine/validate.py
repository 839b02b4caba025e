"""The evaluation at the end of an epoch: on the validation images, by all processes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from tl.data.streams import Batch
from tl.engine.evaluate import evaluate
from tl.engine.nonfinite import Policy, not_finite
from tl.engine.state import Run
from tl.engine.wishes import stop_agreed
from tl.errors import OnOneProcessError, UserError
from tl.freezing import batch_norm_trains
from tl.tracking.tracker import Metrics


def validate(run: Run, validation: Iterable[Batch], where: Metrics, policy: Policy) -> bool:
    """Evaluate, log it and note the best. False if there was a reason to stop before the end.

    Bad images are named, once each.

    Raises:
        FloatingPointError, RollBack: the loss is not finite.
    """
    progress = run.progress
    if batch_norm_trains(run.network):
        _share_batch_norm(run)
    _share_bad_images(run)
    result = evaluate(
        run.runtime,
        run.network,
        run.preprocessing,
        validation,
        len(run.source.classes),
        run.bad_images,
        lambda: stop_agreed(run, "evaluating"),
    )
    _share_bad_images(run)
    if result is None:
        return False
    if not math.isfinite(result.loss):
        not_finite("the validation loss is not finite", policy, progress)
    progress.last = {"val/accuracy": result.accuracy, "val/loss": result.loss}
    progress.evaluation_due = False
    run.trackers.log({**where, **progress.last}, progress.step)
    if _is_better(progress.last, progress.best):
        progress.best = {**progress.last, "step": progress.step}
    return True


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
