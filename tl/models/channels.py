"""Images of another number of channels than the weights were trained with: the first convolution.

The rule is timm's (``adapt_input_conv`` in ``timm/models/_manipulate.py``): for one channel the
kernels of all channels are summed, so that a grey image gives what its RGB copy gives, where both
are normalised alike; for n channels those of R, G and B are repeated in turn and scaled by 3/n.
Weights of one channel go into n in the same way, so that there, too, a copy gives what the grey
image does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def input_convolutions(model: Any) -> list[str]:
    """Names of the convolutions that images go into: timm says them, else it is the first."""
    first = getattr(model, "pretrained_cfg", {}).get("first_conv")
    if first:
        return [first] if isinstance(first, str) else list(first)
    convolutions = (n for n, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return [name for _, name in zip(range(1), convolutions, strict=False)]


def set_channels(model: nn.Module, channels: int) -> None:
    """Let a network of torchvision take images of ``channels`` channels, in place.

    Its random weights become those of `adapted`: an output has the variance that it had.
    """
    (name,) = input_convolutions(model)
    convolution = model.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.groups == 1
    if convolution.in_channels != channels:
        convolution.in_channels = channels
        convolution.weight = nn.Parameter(adapted(convolution.weight.detach(), channels))


def adapted(weight: Tensor, channels: int) -> Tensor:
    """Kernels (O, I, H, W) as (O, channels, H, W), by the rule of this module."""
    given = weight.shape[1]
    if channels == given:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // given), 1, 1)[:, :channels]
    return (repeated * (given / channels)).contiguous()


def fit_channels(model: Any, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """``state`` with the first convolutions of RGB or grey weights as ``model`` has them.

    Returns it and, for people, what was done.
    """
    target, changed, notes = model.state_dict(), dict(state), []
    for name in (f"{name}.weight" for name in input_convolutions(model)):
        if name not in state or name not in target:
            continue
        value, wanted = state[name], target[name].shape
        if value.dim() != 4 or len(wanted) != 4 or value.shape[1] not in (1, 3):
            continue
        given, channels = value.shape[1], wanted[1]
        if given != channels and value.shape == (wanted[0], given, *wanted[2:]):
            changed[name] = adapted(value.float(), channels)
            how = "summed" if channels == 1 else f"repeated and scaled by {given}/{channels}"
            notes.append(f"{name}: {given} input channels to {channels}, {how}")
    return changed, notes
