"""What stages of a network make of images that are looked at once, on all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from tl.config import Config
from tl.data.sampler import BatchShares
from tl.data.split import AnyImages
from tl.data.streams import BadImages, default_workers, open_stream
from tl.data.transforms import plain_view
from tl.engine.inputs import to_network
from tl.engine.runtime import Runtime
from tl.models.network import Network
from tl.models.pooled import pooled_outputs
from tl.models.preprocessing import Preprocessing


@torch.inference_mode()
def image_features(
    config: Config,
    network: Network,
    preprocessing: Preprocessing,
    images: AnyImages,
    stages: list[str],
    here: Runtime,
    batch_size: int,
    bad_images: BadImages,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This process's share of the images, as in validation, in eval mode.

    Returns:
        ids (n,), positions in ``images``, and for each stage its output, float32 (n, width) on the
        CPU, its mean over space or tokens.

    Raises:
        OnOneProcessError: an image that cannot be read, and is not to be left out.
    """
    workers = config.data.workers
    stream = open_stream(
        images,
        plain_view(preprocessing),
        BatchShares(len(images), batch_size, here.rank, here.world_size),
        seed=config.seed,
        size=preprocessing.crop_size,
        channels=preprocessing.channels,
        decode=config.data.decode,
        workers=default_workers(here.processes_on_node) if workers is None else workers,
        pin_memory=here.device.type == "cuda",
    )
    network.to(here.device).to(memory_format=torch.channels_last).eval()
    ids, found = [], []
    for batch in stream:
        bad_images.meet(batch["bad"])
        real = batch["weight"] > 0
        ids.append(batch["id"][real])
        batch = to_network(batch, here.device, preprocessing)
        with here.accelerator.autocast():
            outputs = pooled_outputs(network, batch["image"], stages)
        found.append({stage: x[real] for stage, x in outputs.items()})
    network.to("cpu")
    return torch.cat(ids), {name: torch.cat([part[name] for part in found]) for name in stages}
