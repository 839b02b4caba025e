"""The rows of all processes' shares of a batch, gathered with their gradients.

For losses that are no sums over images, such as those over a matrix of features or a distribution:
taken of each process's share and averaged they would be others on each number of processes. Taken
of what `gathered` returns, every process computes the same value, and `share_of` makes parts of it
that sum up to it, in value and in gradient. With gradient accumulation the batch is a micro-batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tl.config import Phase
from tl.data.sampler import share, share_of_pairs
from tl.data.streams import Batch


def gathered(values: Tensor, batch: Batch, phase: Phase) -> tuple[Tensor, Tensor]:
    """``values`` of all processes, (M, D), and their weights (M,); called by all of them together.

    Args:
        values: (N, D), a row for each image of this share; half precision is made float32.
        batch: of these images. Rows of weight 0 come as zeros, between the others.

    Gradients: each process's is the sum over all processes' losses.
    """
    weight = batch["weight"]
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    values = torch.where(weight[:, None] > 0, values, 0)  # what padding is like, even NaN
    if _processes() == 1:
        return values, weight.to(values.dtype)
    rows = torch.cat([values, weight[:, None].to(values.dtype)], 1)
    most = largest_share(phase, _processes())
    assert len(rows) <= most, (len(rows), most)
    # Of one size on every process, known beforehand: the host asks nobody for sizes.
    rows = torch.cat([rows, rows.new_zeros(most - len(rows), rows.shape[1])])
    everyone = _Gather.apply(rows)
    return everyone[:, :-1], everyone[:, -1].detach()


def largest_share(phase: Phase, processes: int) -> int:
    """The most images that a process has in a micro-batch of a phase."""
    first = share(phase.global_batch_size, 0, phase.gradient_accumulation)
    cut = share_of_pairs if phase.mixes else share
    mine = cut(first.stop - first.start, 0, processes)
    return max(1, mine.stop - mine.start)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Rows (N, D) of W processes to (W N, D) on each of them.

    A process's rows are in every process's loss. Their gradient is the sum of what all of these
    losses send back to them; after DDP's own sum, over what each process's rows came from, that is
    the gradient of the sum of the losses.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyone = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(everyone, rows.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        slope = slope.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(slope)
        return slope.chunk(dist.get_world_size())[dist.get_rank()]
