"""BatchNorm over the whole global batch: the same network on any number of processes.

PyTorch's own BatchNorm normalises by the images that one process happens to have, so another
number of processes is another network. Its SyncBatchNorm needs a GPU, and counts padding as an
image. Here a layer's statistics are those of the micro-batch on all processes together, padding
left out, on any device. It costs one gathering forward and one reduction backward for each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl.errors import UserError

Weights = Callable[[], Tensor | None]
"""gives the weight (N,) of each image that goes through: 1, or 0 for padding"""


def synchronize(layer: _BatchNorm, weights: Weights) -> None:
    """Make ``layer`` take its statistics over all processes when it trains. Undone by `separate`.

    Raises:
        UserError: a kind of BatchNorm that computes something besides.
    """
    plain = type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    with_activation = type(layer).__name__ == "BatchNormAct2d"  # timm
    if not (plain or with_activation) or not layer.track_running_stats:
        raise UserError(f"batch_norm=sync cannot be had for {type(layer).__name__}; use frozen")
    own = type(layer).forward

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return own(self, x)
        y = _normalise(self, x, weights())
        return self.act(self.drop(y)) if with_activation else y

    vars(layer)["forward"] = MethodType(forward, layer)


def separate(layer: _BatchNorm) -> None:
    """Give ``layer`` its own statistics on each process again."""
    vars(layer).pop("forward", None)


def is_synchronized(layer: nn.Module) -> bool:
    return "forward" in vars(layer)


def _normalise(layer: _BatchNorm, x: Tensor, weight: Tensor | None) -> Tensor:
    assert weight is not None, "Network.expect says which images come"
    assert len(weight) == len(x), "a weight for each image"
    y, mean, var, count = _GlobalBatchNorm.apply(
        x, weight, layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.eps
    )
    with torch.no_grad():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked += 1
        momentum = layer.momentum
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(layer.num_batches_tracked)
        # A single value has no variance: it moves nothing, see tl.models.batch_norm.
        share = momentum * (count > 1).to(count.dtype)
        unbiased = var * count / (count - 1).clamp(min=1)
        layer.running_mean += share * (mean.to(layer.running_mean.dtype) - layer.running_mean)
        layer.running_var += share * (unbiased.to(layer.running_var.dtype) - layer.running_var)
    return y


class _GlobalBatchNorm(torch.autograd.Function):
    """Ioffe and Szegedy (ICML 2015), its sums taken over the images of all processes.

    With N values per channel over all processes, x̂ = (x − mean) / sqrt(var + eps), y = w x̂ + b:
    dx = w / sqrt(var + eps) · (dy − Σ dy / N − x̂ Σ(dy x̂) / N). The gradients of w and b are this
    process's part, as those of all other parameters are. Mean and variance are combined from each
    process's own (Chan, Golub and LeVeque, 1979), as a sum of squares would cancel in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Statistics in float32 at least; in float64 for a float64 network.
        precise = torch.promote_types(x.dtype, torch.float32)
        dims = [0, *range(2, x.dim())]
        rows = weight.to(precise).view(-1, *[1] * (x.dim() - 1))
        values = x.to(precise)
        count_here = weight.to(precise).sum() * x[0, 0].numel()
        mean_here = (values * rows).sum(dims) / count_here.clamp(min=1)
        squares_here = ((values - _wide(mean_here, x)).square() * rows).sum(dims)

        counts, means, squares = _gather(count_here, mean_here, squares_here)
        count = counts.sum()
        mean = (counts * means).sum(0) / count.clamp(min=1)
        var = (squares + counts * (means - mean).square()).sum(0) / count.clamp(min=1)

        several = count > 1
        used_mean = torch.where(several, mean, running_mean.to(precise))
        inverse = torch.where(several, var, running_var.to(precise)).add(eps).rsqrt()
        normal = (values - _wide(used_mean, x)) * _wide(inverse, x)
        y = normal if scale is None else normal * _wide(scale, x)
        y = y if shift is None else y + _wide(shift, x)
        ctx.save_for_backward(x, rows, scale, used_mean, inverse, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, rows, scale, mean, inverse, count = ctx.saved_tensors
        precise = mean.dtype
        dims = [0, *range(2, x.dim())]
        normal = (x.to(precise) - _wide(mean, x)) * _wide(inverse, x)
        slope = dy.to(precise) * rows
        sums_here = torch.stack([slope.sum(dims), (slope * normal).sum(dims)])
        sums = sums_here.clone()
        dist.all_reduce(sums)
        # Where the running statistics were used they are constants.
        sums = torch.where(count > 1, sums / count.clamp(min=1), torch.zeros_like(sums))
        factor = inverse if scale is None else inverse * scale
        dx = (slope - (_wide(sums[0], x) + normal * _wide(sums[1], x)) * rows) * _wide(factor, x)
        d_scale = None if scale is None else sums_here[1].to(scale.dtype)
        d_shift = sums_here[0].to(scale.dtype) if scale is not None else None
        return dx.to(x.dtype), None, d_scale, d_shift, None, None, None


def _wide(per_channel: Tensor, like: Tensor) -> Tensor:
    """(C,) as (1, C, 1, …)."""
    return per_channel.view(1, -1, *[1] * (like.dim() - 2))


def _gather(count: Tensor, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all processes: counts (W, 1), means and sums of squares (W, C)."""
    mine = torch.cat([count[None], mean, squares])
    packed = mine.new_empty(dist.get_world_size() * len(mine))
    dist.all_gather_into_tensor(packed, mine)
    packed, channels = packed.view(-1, len(mine)), len(mean)
    return packed[:, :1], packed[:, 1 : 1 + channels], packed[:, 1 + channels :]
