"""Exact evaluation over all processes: each image once, reduced once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tl.data.streams import BadImages, Batch
from tl.engine.inputs import to_network
from tl.engine.runtime import Runtime
from tl.errors import UserError
from tl.metrics import Confusion, Sums, balanced_accuracy, macro_f1
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing
from tl.report.seen import Watch


@dataclass(frozen=True)
class Evaluation:
    """Metrics over a whole data set, the same on every process."""

    loss: float
    """Mean cross-entropy, without label smoothing."""
    accuracy: float
    images: int
    confusion: Tensor
    """int64 counts (C, C): row the class, column what it was called."""

    def metrics(self) -> dict[str, float]:
        """What `best.metric` may name, by these names."""
        return {
            "val/accuracy": self.accuracy,
            "val/loss": self.loss,
            "val/macro_f1": macro_f1(self.confusion),
            "val/balanced_accuracy": balanced_accuracy(self.confusion),
        }


@torch.inference_mode()
def evaluate(
    runtime: Runtime,
    network: Network,
    preprocessing: Preprocessing,
    stream: Iterable[Batch],
    num_classes: int,
    bad_images: BadImages,
    stops: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> Evaluation | None:
    """Loss, accuracy and confusion matrix of ``network`` over ``stream``, in eval mode.

    Every process calls this with its own share of the data. The mode of the network is restored.

    Args:
        stops: asked between two batches, of which all processes have as many; if it says so on
            all of them the evaluation ends there, and None is returned.
        watch: is shown every batch.

    Raises:
        UserError: a bad image, or not one image that can be read.
    """
    was_training = network.training
    network.eval()
    sums = Sums(runtime.device)
    confusion = Confusion(num_classes, runtime.device)
    for batch in stream:
        if stops():
            network.train(was_training)
            return None
        bad_images.meet(batch["bad"])
        ids = batch["id"]
        batch = to_network(batch, runtime.device, preprocessing)
        with runtime.accelerator.autocast():
            logits = network(batch["image"], batch["start"])
        losses = F.cross_entropy(logits.double(), batch["label"], reduction="none")
        predictions = logits.argmax(1)
        sums.add(
            loss=(losses * batch["weight"]).sum(),
            correct=((predictions == batch["label"]) * batch["weight"]).sum(),
            images=batch["weight"].sum(),
        )
        confusion.add(batch["label"], predictions, batch["weight"])
        if watch is not None:
            watch.add(ids, batch["label"], logits, batch["weight"])
    network.train(was_training)
    total = sums.reduce(runtime.all_reduce)
    if not total["images"]:
        raise UserError("not one image of the evaluation could be read")
    return Evaluation(
        loss=total["loss"] / total["images"],
        accuracy=total["correct"] / total["images"],
        images=int(total["images"]),
        confusion=confusion.reduce(runtime.all_reduce),
    )
