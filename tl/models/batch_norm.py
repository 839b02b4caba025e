"""BatchNorm on a single value per channel, which PyTorch refuses in training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl.models.synced_batch_norm import is_synchronized


def accept_single_values(model: nn.Module) -> None:
    """Let BatchNorm that trains take one value per channel: it then goes by what it has gathered.

    The last batch of an epoch, or a process's share of one, may be a single image, and small images
    end as a single pixel. A variance of one value does not exist, and an image that is left out
    would not count. So this input, and it alone, is normalised by the running statistics, which it
    does not move.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(_before)
            module.register_forward_hook(_after, always_call=True)


def _before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    values: Tensor = arguments[0]
    # A synchronized layer takes part in what all processes do, and sees to this by itself.
    if module.training and values.numel() == values.shape[1] and not is_synchronized(module):
        module.training = False
        module.single_value = True  # type: ignore[assignment]


def _after(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
    if getattr(module, "single_value", False):
        module.training = True
        module.single_value = False  # type: ignore[assignment]
