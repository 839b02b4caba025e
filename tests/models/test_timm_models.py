"""timm's networks: cut into stages that were proven on an input, or refused."""

import urllib.error

import pytest
import timm
import torch

from tl.errors import UserError
from tl.models import saved, weights, zoo
from tl.models.network import head_parameters
from tl.models.preprocessing import preprocessing_of


@pytest.fixture(autouse=True)
def _one_thread():
    """For one small image, threads that wait for each other on a busy machine cost far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet10t", 6),
        ("convnext_atto", 6),
        ("vit_tiny_patch16_224", 14),
        ("mobilenetv3_small_050", 8),
        ("regnety_002", 6),
        ("efficientnet_b0", 9),
        ("resnetv2_50", 6),  # its final layer is a convolution
        ("densenet121", 2),  # no finer list is known
    ],
)
def test_stages_equal_the_network_at_every_cut(name, stages):
    network = zoo.build(f"timm:{name}", 3).eval()
    assert len(network.stages) == stages
    assert network.stages[-1].name == "head"
    x = torch.randn(2, *network.model.pretrained_cfg["input_size"])
    with torch.no_grad():
        expected = network.model(x)
        for k in range(stages + 1):
            torch.testing.assert_close(network(network.features(x, k), start=k), expected)
    owners = {key: network.stage_of(key) for key in network.model.state_dict()}
    assert set(owners.values()) == {stage.name for stage in network.stages}
    for key in owners:
        assert sum(stage.owns_name(key) for stage in network.stages) == 1
    other = timm.create_model(name, num_classes=4).state_dict()
    state = network.model.state_dict()
    assert head_parameters(network) == {k for k in state if state[k].shape != other[k].shape}


def test_a_network_of_two_heads_is_refused():
    with pytest.raises(UserError, match="cannot be cut"):
        zoo.build("timm:deit_tiny_distilled_patch16_224", 3)


def test_building_leaves_the_random_numbers_to_the_run():
    torch.manual_seed(0)
    timm.create_model("resnet10t", num_classes=3)
    expected = torch.rand(1)
    torch.manual_seed(0)
    zoo.build("timm:resnet10t", 3)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["timm:resnet10x", "timm:resnet10t.c9_in1k"])
def test_unknown_names_offer_the_nearest(name):
    with pytest.raises(UserError, match="Did you mean '"):
        zoo.build(name, 3)


def test_image_size_and_round_trip(tmp_path):
    network = zoo.build("timm:vit_tiny_patch16_224", 2, 64)
    assert network.arguments == {"num_classes": 2, "img_size": 64}
    assert "img_size" not in zoo.build("timm:resnet10t", 2, 64).arguments
    saved.save(network, ["a", "b"], preprocessing_of(network.architecture, None), tmp_path)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(saved.load(tmp_path).network(x), network.eval()(x))


def test_weights_have_their_name_in_the_architecture():
    network = zoo.build("timm:resnet10t", 3)
    with pytest.raises(UserError, match=r"timm:resnet10t\.c3_in1k.*'DEFAULT'"):
        weights.load(network, "IMAGENET1K_V1")


def test_without_a_network_the_error_says_where_the_weights_are(monkeypatch):
    def no_network(name, pretrained=False, **kwargs):
        raise urllib.error.URLError("no network")

    network = zoo.build("timm:resnet10t", 3)
    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(UserError, match=r"huggingface.co/timm/resnet10t.*model.weights=/path"):
        weights.load(network, "DEFAULT")


def test_published_weights_are_loaded_all_but_the_head(monkeypatch):
    create, published = timm.create_model, timm.create_model("resnet10t")
    network = zoo.build("timm:resnet10t", 3)

    def fetched(name, pretrained=False, **kwargs):
        return published if pretrained else create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", fetched)
    report = weights.load(network, "DEFAULT")
    assert report.new == report.dropped == ("fc.weight", "fc.bias")
    assert torch.equal(network.model.layer1[0].conv1.weight, published.layer1[0].conv1.weight)
