"""BatchNorm takes a single value per channel, and is PyTorch's own for all else."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tl.models import zoo
from tl.models.batch_norm import accept_single_values


def test_a_single_value_is_normalised_by_running_statistics_and_moves_none() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    plain(torch.randn(16, 3))
    patched = copy.deepcopy(plain)
    accept_single_values(patched)
    before = copy.deepcopy(patched.state_dict())
    x = torch.randn(1, 3)
    assert torch.equal(patched(x), plain.eval()(x))
    assert patched[1].training
    assert all(torch.equal(before[name], value) for name, value in patched.state_dict().items())


def test_more_values_are_normalised_as_ever() -> None:
    plain = nn.BatchNorm2d(3)
    patched = copy.deepcopy(plain)
    accept_single_values(patched)
    for shape in ((2, 3, 1, 1), (1, 3, 2, 1), (5, 3, 4, 4)):
        x = torch.randn(shape)
        assert torch.equal(patched(x), plain(x))
    assert torch.equal(patched.running_var, plain.running_var)


def test_one_small_image_trains_a_network_with_batchnorm() -> None:
    network = zoo.build("resnet18", 3, 32).train()
    network(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert all(module.training for module in network.modules())
