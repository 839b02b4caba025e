"""What the network says of the whole target before an epoch, for objectives that go by that."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tl.data.streams import Batch
from tl.engine.inputs import to_network
from tl.engine.phase_data import PhaseData
from tl.engine.state import Run
from tl.engine.validate import share_batch_norm
from tl.engine.wishes import stop_agreed
from tl.models.pooled import pool
from tl.objectives.objective import Objective, Predictions


def predict_target(run: Run, data: PhaseData, objective: Objective, epoch: int) -> None:
    """Give the objective the predictions of before an epoch, if it asks for such and has them not.

    By all processes together, each image once. If there is a reason to stop before the end, the
    objective is given none.

    Args:
        epoch: of the phase, from 0.

    Raises:
        OnOneProcessError: a bad image, and such are not to be left out.
    """
    if data.predicted is None or objective.predictions_of == epoch:
        return
    share_batch_norm(run)
    phase, images = run.phases[run.progress.phase], data.predicted.images
    batches = data.predicted.batches(run, run.evaluation_sampler(phase, images))
    seen = _predictions(run, batches, len(images))
    if seen is not None:
        objective.take_predictions(seen, epoch)


@torch.no_grad()
def _predictions(run: Run, batches: Iterable[Batch], images: int) -> Predictions | None:
    here, network = run.runtime, run.network
    before_head = network.stages[-2].name
    rows: list[tuple[torch.Tensor, ...]] = []
    network.eval()
    for batch in batches:
        if stop_agreed(run, "looking at the target"):
            break
        run.bad_images.meet(batch["bad"])
        batch = to_network(batch, here.device, run.preprocessing)
        with here.accelerator.autocast():
            logits, _, stages = network.forward_with_stages(
                batch["image"], batch["start"], (before_head,)
            )
        seen = batch["weight"] > 0
        features, chances = pool(stages[before_head]), _at_least_float32(logits).softmax(1)
        mine = (batch["id"], _at_least_float32(features), chances)
        rows.append(tuple(part[seen].cpu() for part in mine))
    network.train()
    if run.agreement.stop:
        return None
    ids, features, chances = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return Predictions(ids, features, chances, images, here.device, here.all_reduce)


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
