"""The network: frozen prefix, modules in eval mode, auxiliary logits, continuing from features."""

import copy

import pytest
import torch

from tl.models import zoo
from tl.models.network import head_parameters


@pytest.fixture(autouse=True)
def _one_thread():
    """For one small image, threads that wait for each other on a busy machine cost far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return zoo.build("resnet18", 3)


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_logits_have_a_column_for_each_class(network):
    assert network.eval()(X).shape == (2, 3)


def test_names_are_torchvisions(network):
    assert "layer1.0.conv1.weight" in network.model.state_dict()
    assert network.stage_of("layer1.0.conv1.weight") == "layer1"
    assert network.stage_of("layer4.1.bn2.running_mean") == "layer4"
    with pytest.raises(KeyError):
        network.stage_of("model.fc.weight")


def test_a_frozen_prefix_has_no_autograd_graph(network):
    network.frozen_prefix = 5
    assert not network.features(X, 5).requires_grad
    network(X).sum().backward()
    with_gradient = {n for n, p in network.model.named_parameters() if p.grad is not None}
    assert with_gradient == {"fc.weight", "fc.bias"} == head_parameters(network)


def test_features_beyond_the_frozen_prefix_have_a_graph(network):
    network.frozen_prefix = 2
    assert not network.features(X, 2).requires_grad
    assert network.features(X, 3).requires_grad


def test_a_wholly_frozen_network_has_no_graph(network):
    network.frozen_prefix = len(network.stages)
    assert not network(X).requires_grad


@pytest.mark.parametrize("start", range(7))
@pytest.mark.parametrize("frozen", [0, 3, 6])
def test_continuing_from_features_equals_the_whole(network, start, frozen):
    network.eval().frozen_prefix = frozen
    with torch.no_grad():
        expected = network.model(X)
        features = network.features(X, start)
        assert torch.equal(network(features, start=start), expected)
        assert torch.equal(network.forward_with_aux(features, start=start)[0], expected)


def test_features_of_more_stages_than_there_are_is_an_error(network):
    with pytest.raises(ValueError, match="6 stages"):
        network.features(X, 7)


def test_train_keeps_eval_modules_in_eval_with_all_below_them(network):
    network.eval_modules = frozenset({"bn1", "layer1"})
    assert network.train() is network
    assert network.training
    assert network.model.layer2[0].bn1.training
    assert not network.model.bn1.training
    assert not any(module.training for module in network.model.layer1.modules())
    before = network.model.layer1[0].bn1.running_mean.clone()
    moving = network.model.layer2[0].bn1.running_mean.clone()
    network(X)
    assert torch.equal(network.model.layer1[0].bn1.running_mean, before)
    assert not torch.equal(network.model.layer2[0].bn1.running_mean, moving)
    network.eval_modules = frozenset()
    assert network.train().model.bn1.training


def test_a_copy_is_independent_and_keeps_what_is_frozen(network):
    network.frozen_prefix, network.eval_modules = 2, frozenset({"bn1"})
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.model.fc.weight.zero_()
    assert twin.frozen_prefix == 2
    assert not twin.train().model.bn1.training
    assert network.model.fc.weight.abs().sum() > 0


@pytest.mark.parametrize("name", ["googlenet"])
def test_auxiliary_logits_appear_only_in_training(name):
    network = zoo.build(name, 3)
    logits, auxiliary = network.train().forward_with_aux(X)
    assert logits.shape == (2, 3)
    assert [(weight, out.shape) for weight, out in auxiliary] == [(0.3, (2, 3)), (0.3, (2, 3))]
    assert isinstance(network(X), torch.Tensor)
    assert network.eval().forward_with_aux(X)[1] == []


def test_auxiliary_classifiers_that_do_not_train_are_not_run():
    network = zoo.build("googlenet", 3)
    network.model.aux1.requires_grad_(False)
    network.eval_modules = frozenset({"aux2"})
    assert network.train().forward_with_aux(X)[1] == []
    network.eval_modules = frozenset()
    assert len(network.train().forward_with_aux(X)[1]) == 1


def test_auxiliary_loss_weights_and_final_layers():
    google, inception = zoo.build("googlenet", 3), zoo.build("inception_v3", 3)
    found = {s.name: s.aux for n in (google, inception) for s in n.stages if s.aux}
    assert {k: (a.name, a.weight) for k, a in found.items()} == {
        "inception4a": ("aux1", 0.3),
        "inception4d": ("aux2", 0.3),
        "Mixed_6e": ("AuxLogits", 0.4),
    }
    assert {"aux1.fc2.weight", "aux2.fc2.bias", "fc.bias"} <= head_parameters(google)
    assert {"AuxLogits.fc.weight", "fc.weight"} <= head_parameters(inception)
    assert google.stage_of("aux1.conv.conv.weight") == "inception4a"
