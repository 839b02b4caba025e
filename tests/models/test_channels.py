"""Grey and multispectral images: the first convolution by a stated rule."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import adapt_input_conv
from torch import nn

from tl.models import saved, weights, zoo
from tl.models.channels import adapted, input_convolutions
from tl.models.preprocessing import Preprocessing, preprocessing_of, with_channels

# A small network of each family.
NAMES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11_bn", "vit_b_32",
]  # fmt: skip
X = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 13])
def test_the_rule_is_timms(channels):
    weight = torch.randn(8, 3, 3, 3)
    assert torch.equal(adapted(weight, channels), adapt_input_conv(channels, weight))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_an_image_whose_channels_are_alike_gives_the_same_for_any_number_of_them(given_, n, seed):
    """Exactly where as many kernels are repeated; else the mean over R, G and B is weighted."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, given_, 3, 3, generator=generator, dtype=torch.float64)
    grey = torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    expected = nn.functional.conv2d(grey.expand(-1, given_, -1, -1), weight)
    found = nn.functional.conv2d(grey.expand(-1, n, -1, -1), adapted(weight, n))
    if n == 1 or n % given_ == 0:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.shape == expected.shape


@pytest.mark.parametrize("name", NAMES)
def test_the_input_convolution_of_every_family_is_found(name):
    # Shapes are all that is looked at; RegNet's builder computes with its own numbers.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = zoo.build(name, 3)
        (found,) = input_convolutions(network.model)
        assert network.model.get_submodule(found).in_channels == 3
        assert network.stage_of(f"{found}.weight") == network.stages[0].name
        grey = zoo.build(name, 3, in_channels=1)
        assert grey.model.get_submodule(found).weight.shape[1] == 1


@pytest.mark.parametrize(
    "name",
    ["resnet18", "squeezenet1_1", "mnasnet0_5", "timm:vit_tiny_patch16_224"],
)
def test_a_grey_image_gives_what_its_rgb_copy_gives(name, tmp_path):
    rgb = zoo.build(name, 3, 64).eval()
    if name.startswith("squeezenet"):  # a file whose head is kept is one with a final ReLU
        zoo.set_final_relu(rgb, True)
    torch.save(rgb.model.state_dict(), tmp_path / "rgb.pth")
    grey = zoo.build(name, 3, 64, in_channels=1).eval()
    report = weights.load(grey, str(tmp_path / "rgb.pth"), keep_head=True)
    assert report.new == ()
    assert any("3 input channels to 1, summed" in note for note in report.notes)
    with torch.no_grad():
        torch.testing.assert_close(grey(X), rgb(X.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_grey_weights_go_into_an_rgb_network(tmp_path):
    grey = zoo.build("resnet18", 3, in_channels=1).eval()
    torch.save(grey.model.state_dict(), tmp_path / "grey.pth")
    rgb = zoo.build("resnet18", 3).eval()
    weights.load(rgb, str(tmp_path / "grey.pth"), keep_head=True)
    with torch.no_grad():
        torch.testing.assert_close(rgb(X.expand(-1, 3, -1, -1)), grey(X), rtol=1e-4, atol=1e-5)


def test_random_weights_for_grey_are_those_for_rgb_summed():
    """So that with one seed an untrained network treats a grey image as its RGB copy."""
    torch.manual_seed(0)
    rgb = zoo.build("resnet18", 3)
    torch.manual_seed(0)
    grey = zoo.build("resnet18", 3, in_channels=1)
    assert torch.equal(grey.model.conv1.weight, rgb.model.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(grey.model.fc.weight, rgb.model.fc.weight)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_normalise_anew_do_so_for_grey(name):
    """By 0.449 and 0.226, the means of ImageNet's three means and standard deviations."""
    grey = zoo.build(name, 2, in_channels=1)
    pixels = torch.rand(1, 1, 8, 8)
    transform = grey.stages[0].steps[0]
    found = transform(grey.model, (pixels - 0.449) / 0.226)
    torch.testing.assert_close(found, (pixels - 0.5) / 0.5)


def test_more_channels_reach_the_network_and_its_folder(tmp_path):
    network = zoo.build("squeezenet1_1", 2, in_channels=5).eval()
    assert network(torch.randn(1, 5, 64, 64)).shape == (1, 2)
    assert zoo.rebuild("squeezenet1_1", network.arguments).in_channels == 5


def test_a_grey_model_folder_comes_back(tmp_path):
    grey = zoo.build("squeezenet1_1", 2, in_channels=1).eval()
    preprocessing = with_channels(preprocessing_of("squeezenet1_1", None), 1)
    saved.save(grey, ["a", "b"], preprocessing, tmp_path)
    loaded = saved.load(tmp_path)
    assert loaded.preprocessing == preprocessing == preprocessing_of("squeezenet1_1", str(tmp_path))
    with torch.no_grad():
        assert torch.equal(loaded.network(X), grey(X))


def test_grey_is_normalised_by_the_mean_of_the_three():
    rgb = preprocessing_of("resnet18", None)
    grey = with_channels(rgb, 1)
    assert grey.mean == pytest.approx([0.449])
    assert grey.std == pytest.approx([0.226])
    assert with_channels(grey, 1) is grey
    assert Preprocessing.from_dict(with_channels(grey, 3).to_dict()).mean == grey.mean * 3


def test_timms_own_channels_agree_with_timm():
    ours = zoo.build("timm:resnet10t", 3, in_channels=4).model
    theirs = timm.create_model("resnet10t", in_chans=4, num_classes=3)
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
