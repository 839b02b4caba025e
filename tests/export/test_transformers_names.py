"""torchvision's networks under Transformers' names compute the same: every kind of layer, small."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn
from torchvision import models as tv
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock, Bottleneck

from tl.export.transformers_names import renamed
from tl.models.families import stages_of
from tl.models.network import Network

from .conftest import give_statistics

SIZE = 32


def convnext() -> nn.Module:
    blocks = [(4, 8, 1), (8, 12, 2), (12, 16, 1), (16, None, 1)]
    # A scale as it is after training: with 1e-6 of a new one no block would count.
    return tv.ConvNeXt([CNBlockConfig(*b) for b in blocks], layer_scale=0.5, num_classes=3)


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "basic": ("resnet18", functools.partial(tv.ResNet, BasicBlock, [2, 1, 1, 1], num_classes=3)),
    "bottleneck": ("resnet50", functools.partial(tv.ResNet, Bottleneck, [2, 1, 1, 1], 3)),
    "vit": ("vit_b_16", lambda: tv.VisionTransformer(SIZE, 8, 2, 3, 12, 20, num_classes=3)),
    "convnext": ("convnext_tiny", convnext),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_renamed_network_gives_the_same_logits(kind: str) -> None:
    torch.manual_seed(0)
    name, build = NETWORKS[kind]
    model = build()
    x = torch.randn(4, 3, SIZE, SIZE)
    give_statistics(model, x)
    with torch.no_grad():
        for parameter in model.parameters():  # no zeros and ones that a mix-up would not move
            parameter.add_(0.1 * torch.randn_like(parameter))
    network = Network(model, name, {"num_classes": 3}, stages_of(model))
    found = renamed(network, SIZE)
    assert found is not None
    kind, keywords, state = found
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **keywords)
    theirs = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    theirs.load_state_dict(state)
    with torch.inference_mode():
        expected = model.eval()(x)
        # float32 and other kernels for attention: rounding, of a few layers.
        torch.testing.assert_close(theirs(x).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2", "squeezenet1_0"])
def test_what_transformers_cannot_compute_has_no_name(name: str) -> None:
    with torch.device("meta"):
        model = tv.get_model(name)
    assert renamed(Network(model, name, {}, stages_of(model)), SIZE) is None
