"""The outputs of stages, pooled, from one pass."""

from __future__ import annotations

import pytest
import torch

from tl.errors import UserError
from tl.models import zoo
from tl.models.pooled import cuts_of, pool, pooled_outputs


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("squeezenet1_0", 64), ("resnet18", 32), ("swin_t", 64)],
)
@torch.inference_mode()
def test_each_is_the_mean_of_what_the_network_puts_out_there(architecture: str, size: int) -> None:
    network = zoo.build(architecture, 2, size).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    cuts = cuts_of(network, "all")
    assert cuts == [stage.name for stage in network.stages[:-1]]
    found = pooled_outputs(network, images, cuts)
    assert list(found) == cuts
    for i, cut in enumerate(cuts, 1):
        x = network.features(images, i)
        if x.dim() == 4 and architecture == "swin_t":
            expected = x.mean((1, 2))  # channels last
        else:
            expected = x.flatten(2).mean(2) if x.dim() == 4 else x
        assert found[cut].dtype == torch.float32
        torch.testing.assert_close(found[cut], expected)
    assert torch.equal(pooled_outputs(network, images, cuts[1:2])[cuts[1]], found[cuts[1]])


def test_a_vector_is_kept_tokens_are_averaged_and_an_image_of_one_pixel_is_its_channels() -> None:
    x = torch.randn(3, 5)
    torch.testing.assert_close(pool(x[:, None].expand(3, 7, 5)), x)  # tokens that are alike
    assert torch.equal(pool(x), x)
    assert torch.equal(pool(x[:, :, None, None]), x)


def test_cuts_are_named_and_what_is_none_is_refused() -> None:
    network = zoo.build("resnet18", 2)
    assert cuts_of(network, None) == ["layer4"]
    assert cuts_of(network, "layer4, layer1") == ["layer1", "layer4"]
    with pytest.raises(
        UserError, match=r"unknown stage of resnet18 'layer44'.*Did you mean 'layer4'"
    ):
        cuts_of(network, "layer1,layer44")
    with pytest.raises(UserError, match=r"the head is new .*: stem, layer1"):
        cuts_of(network, "head")
