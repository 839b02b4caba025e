"""Synchronized BatchNorm on several processes is PyTorch's BatchNorm on the whole batch."""

from __future__ import annotations

import pytest
import timm.layers
import torch
from gloo_workers import GlooWorkers
from torch import Tensor, nn

from tl.arguments import load
from tl.data.sampler import share
from tl.engine import runtime
from tl.errors import UserError
from tl.freeze_plan import freeze_plan
from tl.freezing import freeze, trainable_names
from tl.models import zoo
from tl.models.synced_batch_norm import is_synchronized, separate, synchronize

CHANNELS = 3
# Sums of some hundred float64 terms, added in another order: a few ulps (2e-16) of the largest.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def _layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = {
        "1d": lambda: nn.BatchNorm1d(CHANNELS),
        "2d": lambda: nn.BatchNorm2d(CHANNELS),
        "cumulative": lambda: nn.BatchNorm2d(CHANNELS, momentum=None),
        "without weights": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
        "timm": lambda: timm.layers.BatchNormAct2d(CHANNELS, inplace=False),
    }[kind]()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.double()


def _data(kind: str, images: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (images, CHANNELS) if kind == "1d" else (images, CHANNELS, 2, 3)
    # Far from zero, where a variance computed as a difference of squares would be lost.
    x = 1e3 + torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def _two_steps(layer: nn.Module, x: Tensor, slope: Tensor) -> list[Tensor]:
    x.requires_grad_()
    layer.train()(x)
    y = layer(x)
    (y * slope).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad]


def on_a_share(kind: str, images: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs and input gradients, buffers, and parameter gradients of this process."""
    here = runtime.start(load(None, [], environ={}).config)
    x, slope = _data(kind, images)
    mine = share(images, here.rank, here.world_size)
    x, slope, weight = x[mine].clone(), slope[mine], torch.ones(len(x[mine]))
    if not len(x):  # what stands in a place of padding must not matter
        x, slope, weight = torch.full_like(_data(kind, 1)[0], 9.0), torch.zeros(1), torch.zeros(1)
    layer = _layer(kind)
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    synchronize(layer, lambda: weight)
    results = _two_steps(layer, x, slope.expand_as(x))
    real = [part[weight > 0] for part in results]
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    return real, list(layer.buffers()), gradients


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("kind", "images"),
    [("1d", 7), ("2d", 7), ("2d", 2), ("cumulative", 5), ("without weights", 5), ("timm", 5)],
)
def test_statistics_outputs_and_gradients_are_those_of_the_whole_batch(
    gloo_workers: GlooWorkers, kind: str, images: int, world_size: int
) -> None:
    layer = _layer(kind)
    expected = _two_steps(layer, *_data(kind, images))
    ranks = gloo_workers.run(world_size, on_a_share, kind, images)
    for number, whole in enumerate(expected):
        joined = torch.cat([real[number] for real, _, _ in ranks])
        torch.testing.assert_close(joined, whole, **CLOSE)
    for _, buffers, _ in ranks:
        for ours, theirs in zip(buffers, layer.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
    for number, parameter in enumerate(layer.parameters()):
        total = sum(gradients[number] for _, _, gradients in ranks)
        torch.testing.assert_close(total, parameter.grad, **CLOSE)


def test_one_value_on_all_processes_goes_by_the_running_statistics(
    gloo_workers: GlooWorkers,
) -> None:
    x, slope = _data("1d", 1)
    layer = _layer("1d").eval()
    x.requires_grad_()
    y = layer(x)
    (y * slope).sum().backward()
    for real, buffers, _ in gloo_workers.run(3, on_a_share, "1d", 1):
        if len(real[0]):
            torch.testing.assert_close(real[0], y.detach(), **CLOSE)
            torch.testing.assert_close(real[1], x.grad, **CLOSE)
        assert torch.equal(buffers[0], layer.running_mean)
        assert torch.equal(buffers[1], layer.running_var)


def half_precision_on_a_share() -> tuple[torch.dtype, Tensor]:
    here = runtime.start(load(None, [], environ={}).config)
    x = _data("2d", 8)[0][share(8, here.rank, here.world_size)].float()
    layer = nn.BatchNorm2d(CHANNELS)
    synchronize(layer, lambda: torch.ones(len(x)))
    y = layer(x.bfloat16())
    return y.dtype, layer.running_var


def test_half_precision_inputs_have_float32_statistics(gloo_workers: GlooWorkers) -> None:
    x = _data("2d", 8)[0].float().bfloat16()
    plain = nn.BatchNorm2d(CHANNELS)
    plain(x.float())
    for dtype, running_var in gloo_workers.run(2, half_precision_on_a_share):
        assert dtype == torch.bfloat16
        torch.testing.assert_close(running_var, plain.running_var, rtol=1e-5, atol=1e-5)


def test_a_phase_synchronizes_what_trains_and_the_next_one_takes_it_back() -> None:
    network = zoo.build("resnet18", 3, 32)
    freeze(network, trainable_names(network, "last_stages(2)"), "sync")
    synced = {name for name, module in network.model.named_modules() if is_synchronized(module)}
    assert synced
    assert all(name.startswith("layer4.") for name in synced)
    rates = dict.fromkeys((name for name, _ in network.model.named_parameters()), 0.1)
    modes = {row.stage: row.batch_norm for row in freeze_plan(network, rates)}
    assert (modes["layer3"], modes["layer4"], modes["head"]) == ("frozen", "sync", "-")
    freeze(network, trainable_names(network, "full"), "train")
    assert not any(is_synchronized(module) for module in network.model.modules())
    assert "sync" not in {row.batch_norm for row in freeze_plan(network, rates)}


def test_a_layer_that_computes_something_besides_is_refused() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match="Odd"):
        synchronize(Odd(3), lambda: None)
    layer = nn.BatchNorm2d(3)
    separate(layer)  # nothing to take back
    assert not is_synchronized(layer)
