"""Evaluation on the target domain: what can be said without its labels, and apart what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.data.streams import BadImages, Batch
from tl.engine.inputs import to_network
from tl.engine.runtime import Runtime
from tl.errors import UserError
from tl.label_free import information_maximisation, soft_neighbourhood_density
from tl.metrics import Confusion, Sums, balanced_accuracy
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing

MOST_NEIGHBOURS = 20_000
"""images that the density is taken over; of more every second, third, … counts, as it takes the
square of their number in time"""


@dataclass(frozen=True)
class TargetEvaluation:
    """Metrics over a domain, the same on every process."""

    entropy: float
    """mean entropy of the predictions, in nats"""
    im: float
    """entropy of the mean prediction, less ``entropy``: see `tl.label_free`"""
    snd: float
    """soft neighbourhood density: see `tl.label_free`"""
    images: int
    confusion: Tensor | None = None
    """int64 counts (C, C), where there are labels"""
    loss: float | None = None
    """mean cross-entropy, where there are labels"""

    def metrics(self) -> dict[str, float]:
        """By names that keep apart what needs labels (``oracle/…``)."""
        found = {"target/im": self.im, "target/snd": self.snd, "target/entropy": self.entropy}
        if self.confusion is not None and self.loss is not None:
            right = self.confusion.diagonal().sum().item() / self.images
            found |= {
                "oracle/accuracy": right,
                "oracle/loss": self.loss,
                "oracle/balanced_accuracy": balanced_accuracy(self.confusion),
            }
        return found


@torch.inference_mode()
def evaluate_target(
    runtime: Runtime,
    network: Network,
    preprocessing: Preprocessing,
    stream: Iterable[Batch],
    num_classes: int,
    bad_images: BadImages,
    stops: Callable[[], bool] = lambda: False,
) -> TargetEvaluation | None:
    """Measure ``network`` over ``stream``, in eval mode; see `tl.engine.evaluate.evaluate`.

    Raises:
        UserError: a bad image, or not one image that can be read.
    """
    was_training = network.training
    network.eval()
    sums, confusion = Sums(runtime.device), Confusion(num_classes, runtime.device)
    mean = torch.zeros(num_classes, dtype=torch.float64, device=runtime.device)
    seen: list[tuple[Tensor, Tensor]] = []
    labelled = False
    for batch in stream:
        if stops():
            network.train(was_training)
            return None
        bad_images.meet(batch["bad"])
        batch = to_network(batch, runtime.device, preprocessing)
        with runtime.accelerator.autocast():
            logits = network(batch["image"], batch["start"])
        log_p = logits.double().log_softmax(1)
        weight, p = batch["weight"].double(), log_p.exp()
        numbers = {"entropy": (-(p * log_p).sum(1) * weight).sum(), "images": weight.sum()}
        mean += (p * weight[:, None]).sum(0)
        here = batch["weight"] > 0
        seen.append((batch["id"][here].cpu(), p[here].float().cpu()))
        if "label" in batch:
            labelled = True
            losses = F.nll_loss(log_p, batch["label"], reduction="none")
            numbers["loss"] = (losses * weight).sum()
            confusion.add(batch["label"], logits.argmax(1), batch["weight"])
        sums.add(**numbers)
    network.train(was_training)
    total = sums.reduce(runtime.all_reduce)
    images = int(total["images"])
    if not images:
        raise UserError(
            "not one image of the target could be read. Look at the files named above, or give "
            "another data.target_root"
        )
    mean = runtime.all_reduce(mean).cpu() / images
    entropy = total["entropy"] / images
    labels: dict[str, Any] = {}
    if labelled:
        labels = {"loss": total["loss"] / images}
        labels["confusion"] = confusion.reduce(runtime.all_reduce)
    rows = _some_of_all(runtime, seen, images)
    return TargetEvaluation(
        entropy,
        information_maximisation(mean, entropy),
        soft_neighbourhood_density(rows),
        images,
        **labels,
    )


def _some_of_all(runtime: Runtime, seen: list[tuple[Tensor, Tensor]], images: int) -> Tensor:
    """Predictions (N, C) of all processes in the order of the images, at most `MOST_NEIGHBOURS`."""
    every = -(-images // MOST_NEIGHBOURS)
    ids = torch.cat([ids for ids, _ in seen])
    kept = ids % every == 0
    mine = (ids[kept], torch.cat([p for _, p in seen])[kept])
    parts = runtime.from_all([mine])
    order = torch.cat([ids for ids, _ in parts]).argsort()
    return torch.cat([p for _, p in parts])[order]
