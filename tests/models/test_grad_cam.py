"""Grad-CAM is its paper's formula: by hand on a toy, and by hooks on real networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tl.errors import UserError
from tl.models import zoo
from tl.models.grad_cam import grad_cam
from tl.models.network import Network
from tl.models.stages import Stage


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def toy(size: int) -> Network:
    """A convolution, an activation, the mean, a linear head."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(4, 2)).double().eval()
    body = Stage("body", ("0", "1", "2", "3"), ("0",))
    return Network(model, "toy", {}, [body, Stage("head", ("4",), ("4",))])


def test_a_toy_by_hand() -> None:
    """y^c = sum over k of w_ck · mean of A^k, so alpha_k = w_ck / places."""
    network, images = toy(9), noise(2, 3, 9, 9, dtype=torch.float64)
    weight = {name: value.detach().numpy() for name, value in network.model.named_parameters()}
    for label in (0, 1):
        found = grad_cam(network, images, torch.tensor([label, label]))
        for x, heat in zip(images.numpy(), found, strict=True):
            maps = np.zeros((4, 4, 4))
            for k in range(4):
                for i in range(4):
                    for j in range(4):
                        part = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                        maps[k, i, j] = (part * weight["0.weight"][k]).sum() + weight["0.bias"][k]
            maps = maps.clip(0)
            cam = sum(weight["4.weight"][label, k] / 16 * maps[k] for k in range(4)).clip(0)
            expected = F.interpolate(torch.from_numpy(cam)[None, None], (9, 9), mode="bilinear")
            assert expected.max() > 0
            torch.testing.assert_close(heat, (expected / expected.max())[0, 0])


# The module whose output the paper means, and whether it has its channels last.
LAYERS = {
    "resnet18": ("layer4", False),
    "squeezenet1_1": ("features", False),
    "convnext_tiny": ("features", False),
    "swin_t": ("norm", True),
}


@pytest.mark.parametrize(
    "architecture",
    [
        "resnet18",
        "squeezenet1_1",
        "swin_t",
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
    ],
)
def test_networks_by_hooks(architecture: str) -> None:
    name, channels_last = LAYERS[architecture]
    network = zoo.build(architecture, 3, 64).double().eval()
    images, kept = noise(2, 3, 64, 64, dtype=torch.float64), {}

    def keep(module: nn.Module, given: object, output: Tensor) -> Tensor:
        kept["maps"] = output
        output.retain_grad()
        return output.clone()  # what follows may work in place

    hook = network.model.get_submodule(name).register_forward_hook(keep)
    network.model(images)[:, 1].sum().backward()
    hook.remove()
    maps, slopes = kept["maps"].detach(), kept["maps"].grad
    if channels_last:
        maps, slopes = maps.permute(0, 3, 1, 2), slopes.permute(0, 3, 1, 2)
    cam = torch.einsum("nk,nkij->nij", slopes.mean((2, 3)), maps).relu()
    expected = F.interpolate(cam[:, None], (64, 64), mode="bilinear")[:, 0]
    most = expected.amax((1, 2), keepdim=True)
    assert most.max() > 0
    found = grad_cam(network, images, torch.tensor([1, 1]))
    torch.testing.assert_close(found, expected / most.clamp_min(1e-300))


def test_a_vit_is_asked_where_its_patches_still_matter() -> None:
    """Of the last block's output the head looks at the class token alone: so its input."""
    network = zoo.build("vit_b_32", 2, 96).double().eval()
    with torch.no_grad():
        network.model.heads.head.weight.normal_()  # torchvision's starts at zero
    images = noise(1, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        before = network.features(images, len(network.stages) - 2)
    tokens = before.clone().requires_grad_()
    last, model = network.model.encoder.layers[-1], network.model
    model.heads(model.encoder.ln(last(tokens))[:, 0])[0, 1].backward()
    alpha = tokens.grad[0, 1:].mean(0)
    cam = (before[0, 1:] @ alpha).reshape(1, 1, 3, 3).relu()
    expected = F.interpolate(cam, (96, 96), mode="bilinear")[0, 0]
    found = grad_cam(network, images, torch.tensor([1]))[0]
    torch.testing.assert_close(found, expected / expected.max())


def test_it_is_said_if_there_is_nothing_to_show() -> None:
    network = toy(3)  # one place after the convolution
    with pytest.raises(UserError, match="images of 3 pixels"):
        grad_cam(network, noise(1, 3, 3, 3, dtype=torch.float64), torch.tensor([0]))


def test_an_image_in_which_nothing_speaks_for_the_class_is_cold() -> None:
    network = toy(9)
    with torch.no_grad():
        network.model[4].weight.fill_(-1.0)
    found = grad_cam(network, noise(1, 3, 9, 9, dtype=torch.float64), torch.tensor([0]))
    assert (found == 0).all()
