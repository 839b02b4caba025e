"""How much each stage would have to change: its gradient beside its weights, before training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from tl.config import Config
from tl.data.sampler import Key, epoch_order
from tl.data.split import Source
from tl.data.streams import BadImages, Batch, open_stream
from tl.data.transforms import plain_view
from tl.engine.inputs import to_network
from tl.errors import UserError
from tl.freezing import freeze, full
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing

MOST_IMAGES = 256
"""Training images that are looked at. It takes as long as training everything on them once."""
BATCH = 32


def gradient_norms(network: Network, batches: Iterable[Batch]) -> dict[str, float]:
    """The norm of each stage's gradient over the norm of its weights (RGN; Lee et al., ICLR 2023).

    The gradient is that of the mean cross-entropy over all images of ``batches``, in eval mode:
    no dropout, and BatchNorm with the statistics that it has. Parameters that the output does not
    depend on, as of an auxiliary classifier, are left out. All parameters require gradients
    afterwards, and have none.

    Args:
        batches: of ``image`` (N, 3, H, W), ``label`` (N,) and ``weight`` (N,), 0 for padding.

    Raises:
        UserError: no image, or a gradient that is not finite.
    """
    freeze(network, full(network))
    network.eval()
    images = 0.0
    for batch in batches:
        losses = F.cross_entropy(network(batch["image"]), batch["label"], reduction="none")
        (losses * batch["weight"]).sum().backward()
        images += batch["weight"].sum().item()
    network.train()
    if not images:
        raise UserError("not one training image could be read")
    gradients: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)  # both: sums of squares
    for name, parameter in network.model.named_parameters():
        if parameter.grad is not None:
            stage = network.stage_of(name)
            gradients[stage] += (parameter.grad.double() / images).square().sum().item()
            weights[stage] += parameter.detach().double().square().sum().item()
            parameter.grad = None
    norms = {s: math.sqrt(gradients[s] / weights[s]) if weights[s] else 0.0 for s in gradients}
    if wrong := [stage for stage, norm in norms.items() if not math.isfinite(norm)]:
        raise UserError(
            f"the gradient of {', '.join(wrong)} is not finite before training: are the weights?"
        )
    return norms


def measure(
    config: Config,
    source: Source,
    network: Network,
    preprocessing: Preprocessing,
    device: torch.device,
) -> dict[str, float]:
    """`gradient_norms` over `MOST_IMAGES` training images that the seed chooses, as in validation.

    Uses no process but this one, so what comes of it does not depend on their number.

    Raises:
        UserError: a bad image, as the config has it.
    """
    ids = epoch_order(len(source.train), config.seed, epoch=0)[:MOST_IMAGES].tolist()
    keys: list[list[Key]] = [
        [(0, i) for i in ids[start : start + BATCH]] for start in range(0, len(ids), BATCH)
    ]
    stream = open_stream(
        source.train,
        plain_view(preprocessing),
        keys,
        seed=config.seed,
        size=preprocessing.crop_size,
        channels=preprocessing.channels,
        decode=config.data.decode,
        workers=0,
        pin_memory=False,
    )
    bad = BadImages(config.data.bad_images, config.data.max_bad_images)

    def batches() -> Iterable[Batch]:
        for batch in stream:
            bad.meet(batch.pop("bad"))
            yield to_network(batch, device, preprocessing)

    return gradient_norms(network.to(device), batches())
