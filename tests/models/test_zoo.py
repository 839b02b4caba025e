"""Building by name: what is possible, and what is refused with which words."""

import sys

import pytest
import torch
from torchvision import models as tv

from tl.errors import UserError
from tl.models import zoo
from tl.models.network import head_parameters


@pytest.fixture(autouse=True)
def _one_thread():
    """For one small image, threads that wait for each other on a busy machine cost far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_architectures_are_torchvisions():
    assert zoo.architectures() == tv.list_models(module=tv)


def test_an_unknown_architecture_offers_the_nearest():
    with pytest.raises(UserError, match=r"'resnet51'.*timm:NAME.*Did you mean 'resnet5"):
        zoo.build("resnet51", 2)


def test_timm_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'transfer-launcher\[timm\]'"):
        zoo.build("timm:resnet18", 2)


def test_no_classes_are_refused():
    with pytest.raises(UserError, match="num_classes is 0"):
        zoo.build("resnet18", 0)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b_16", 225, "multiple of 16 .*Use 224 or 240"),
        ("vit_b_16", 8, "multiple of 16 .*Use 16 or 32"),
        ("maxvit_t", 256, "multiple of 224"),
        ("inception_v3", 64, "at least 75"),
        ("alexnet", 32, "at least 63"),
        ("resnet18", 0, "at least 1"),
    ],
)
def test_an_impossible_image_size_is_refused(name, size, message):
    with pytest.raises(UserError, match=message):
        zoo.build(name, 2, size)


def test_an_image_size_shapes_the_networks_that_have_one():
    network = zoo.build("vit_b_32", 2, 64)
    assert network.model.encoder.pos_embedding.shape[1] == 5
    assert network.arguments == {"num_classes": 2, "image_size": 64}
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    assert zoo.build("resnet18", 2, 64).arguments == {"num_classes": 2}


def test_rebuild_builds_the_same_network():
    network = zoo.build("googlenet", 3)
    again = zoo.rebuild(network.architecture, network.arguments)
    assert again.arguments == network.arguments
    assert again.stages == network.stages
    assert {k: v.shape for k, v in again.model.state_dict().items()} == {
        k: v.shape for k, v in network.model.state_dict().items()
    }


def test_arguments_that_a_builder_does_not_take_are_refused():
    with pytest.raises(UserError, match="resnet18 cannot be built with"):
        zoo.rebuild("resnet18", {"num_classes": 2, "colour": "red"})


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inception_networks_take_the_usual_normalisation(name):
    network = zoo.build(name, 2)
    assert network.model.transform_input
    assert network.arguments["aux_logits"]


def test_inception_has_an_auxiliary_classifier_only_where_it_can_train():
    assert any(stage.aux for stage in zoo.build("inception_v3", 2, 299).stages)
    small = zoo.build("inception_v3", 2, 224)
    assert not any(stage.aux for stage in small.stages)
    assert head_parameters(small) == {"fc.weight", "fc.bias"}
    assert small.arguments["aux_logits"] is False


def test_a_new_squeezenet_head_learns_even_from_negative_logits():
    network = zoo.build("squeezenet1_1", 2).eval()
    with torch.no_grad():
        network.model.classifier[1].bias.fill_(-100)
    logits = network(torch.randn(2, 3, 64, 64))
    assert (logits < 0).all()
    logits[:, 0].sum().backward()
    assert network.model.classifier[1].weight.grad.abs().sum() > 0


def test_the_heads_dropout_leaves_its_input_as_it_is():
    network = zoo.build("efficientnet_b0", 2).train()
    x = torch.ones(2, 1280)
    network(x, start=len(network.stages) - 1)
    assert (x == 1).all()
