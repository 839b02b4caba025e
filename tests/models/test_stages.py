"""Every architecture of torchvision, for real: its stages are the network."""

import copy
import math
import warnings
from typing import get_type_hints

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn
from torchvision import models as tv

from tl.models import zoo
from tl.models.families import FAMILIES, stages_of
from tl.models.network import Network, head_parameters
from tl.models.stages import is_below, owner, run, run_stage

NAMES = tv.list_models(module=tv)
# One small network of each family, for the tests that are too slow for all.
SMALL = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
]  # fmt: skip

# All others are as these, and take a minute together.
SMALL_FIRST = [pytest.param(n, marks=[] if n in SMALL else pytest.mark.slow) for n in NAMES]


@pytest.fixture(autouse=True)
def _one_thread():
    """For one small image, threads that wait for each other on a busy machine cost far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image_size(name):
    """The smallest that torchvision allows, or 32; two by two patches for a ViT."""
    if name.startswith("vit"):
        return 2 * int(name.rpartition("_")[2])
    if name.startswith("maxvit"):
        return 224
    if name.startswith("swin"):
        return 64
    return max(32, *tv.get_model_weights(name).DEFAULT.meta["min_size"])


def original(name, num_classes=None):
    """torchvision's own network, of its parameters only the shapes; its buffers are real."""
    keywords = {"num_classes": num_classes} if num_classes else {}
    if name.startswith("vit"):
        keywords["image_size"] = image_size(name)
    if name in ("googlenet", "inception_v3"):
        keywords |= {"aux_logits": True, "transform_input": True, "init_weights": True}
    with init_empty_weights(include_buffers=False):
        return tv.get_model(name, weights=None, **keywords)


def fill(model):
    """Give every parameter random values that neither vanish nor overflow through the layers.

    Slices of one drawn tensor, scaled by the fan-in: drawing 600 million values takes too long.
    """
    pool = torch.randn(2**20, generator=torch.Generator().manual_seed(0))

    def values(shape):
        count = math.prod(shape)
        repeated = pool.repeat(-(-count // len(pool))) if count > len(pool) else pool
        return repeated[:count].view(shape)

    for name, parameter in list(model.named_parameters()):
        if parameter.dim() > 1:
            fan_in = math.prod(parameter.shape[1:])
            value = values(parameter.shape) * math.sqrt(2 / fan_in)
        else:
            value = values(parameter.shape) * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, nn.Parameter(value, parameter.requires_grad))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(values(buffer.shape) * 0.1)
        if name.endswith("running_var"):
            buffer.copy_(1 + values(buffer.shape).abs() * 0.1)
    return model


def images(name, batch=1):
    size = image_size(name)
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_stages_run_one_after_another_equal_the_network(name):
    model = fill(original(name)).eval()
    x = images(name)
    with torch.no_grad():
        expected = model(x)
        for stage in stages_of(model):
            given = x.clone()
            output = run_stage(stage, model, x)
            assert torch.equal(x, given), f"{stage.name} changes its input"
            x = output
    assert expected.isfinite().all()
    assert expected.std() > 0
    # Exactly: the same operations in the same order.
    assert torch.equal(x, expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_and_buffer_belongs_to_exactly_one_stage(name):
    model = original(name)
    stages = stages_of(model)
    owned = {stage.name: 0 for stage in stages}
    assert len(owned) == len(stages), "names are unique"
    for key in model.state_dict():
        owners = [stage.name for stage in stages if stage.owns_name(key)]
        assert len(owners) == 1, (key, owners)
        assert owner(stages, key) == owners[0]
        owned[owners[0]] += 1
    assert all(owned.values()), owned
    assert stages[-1].name == "head"
    assert len(stages) >= 5


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_the_head_is_all_that_follows_the_number_of_classes(name):
    with init_empty_weights(include_buffers=False), warnings.catch_warnings():
        warnings.simplefilter("error")
        network = zoo.build(name, 7)
        other = zoo.build(name, 8).model.state_dict()
    state = network.model.state_dict()
    assert list(state) == list(other)
    assert head_parameters(network) == {k for k in state if state[k].shape != other[k].shape}
    # The last stage holds nothing else but the classification layer.
    auxiliary = [stage.aux.name for stage in network.stages if stage.aux]
    in_head = {key for key in state if network.stage_of(key) == "head"}
    assert in_head == {
        key for key in head_parameters(network) if not any(is_below(key, a) for a in auxiliary)
    }


def test_families_are_all_covered():
    types = {name: get_type_hints(tv.get_model_builder(name))["return"] for name in NAMES}
    assert set(types.values()) == set(FAMILIES) == {types[name] for name in SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_a_network_cut_at_any_stage_and_continued_is_the_network(name):
    model = fill(original(name)).eval()
    stages = stages_of(model)
    x = images(name, batch=2)
    with torch.no_grad():
        expected = model(x)
        for k in range(1, len(stages)):
            x = run(stages[k - 1 : k], model, x)  # what stages[:k] put out
            if len(stages) < 13 or k % 4 == 0 or k >= len(stages) - 2:
                cut = run(stages[k:], model, x)
                # To rounding: the copy may lie in another memory format than the original.
                again = run(stages[k:], model, x.clone(memory_format=torch.contiguous_format))
                assert torch.equal(cut, expected)
                torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_stages_in_training_mode_equal_the_network_and_keep_their_input(name):
    """Dropout and stochastic depth fire in the network's order; a cached input is not altered."""
    original_model = fill(original(name, num_classes=5)).train()
    # The network that training uses: as built, with SqueezeNet's head as published.
    network = Network(copy.deepcopy(original_model), name, {}, stages_of(original_model))
    zoo._keep_input(network)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    x = images(name, batch=2)
    if name == "inception_v3":  # the smallest that its auxiliary classifier can do with
        x = nn.functional.interpolate(x, size=299)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = original_model(x)
        torch.manual_seed(3)
        logits, auxiliary = network.forward_with_aux(x)
        parts = list(expected) if isinstance(expected, tuple) else [expected]
        assert torch.equal(logits, parts[0])
        # torchvision returns the deepest auxiliary logits first.
        for (_, mine), theirs in zip(auxiliary, reversed(parts[1:]), strict=True):
            assert torch.equal(mine, theirs)
        for stage in network.stages:
            given = x.clone()
            output = run_stage(stage, network.model, x)
            assert torch.equal(x, given), f"{stage.name} changes its input"
            x = output


def test_a_copy_of_a_network_runs_by_the_same_stages():
    model = fill(original("resnet18")).eval()
    stages = stages_of(model)
    twin = copy.deepcopy(model)
    nn.init.zeros_(model.fc.weight)
    x = images("resnet18")
    with torch.no_grad():
        assert torch.equal(run(stages, twin, x), twin(x))
        assert not torch.equal(run(stages, model, x), twin(x))


def test_names_of_stages_are_those_the_documentation_promises():
    def names(architecture):
        return [stage.name for stage in stages_of(original(architecture))]

    assert names("resnet18") == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert names("vit_b_32") == ["stem", *(f"block{i}" for i in range(1, 13)), "head"]
    assert names("vgg11") == [*(f"block{i}" for i in range(1, 6)), "classifier", "head"]
    assert names("squeezenet1_0") == ["stem", *(f"fire{i}" for i in range(2, 10)), "head"]
    assert names("efficientnet_b0")[-2:] == ["top", "head"]
    assert names("mobilenet_v3_small")[-3:] == ["top", "classifier", "head"]
    assert names("maxvit_t")[-2:] == ["classifier", "head"]


def test_a_network_of_no_known_family_is_refused_with_the_place_to_add_it():
    with pytest.raises(ValueError, match=r"Linear: .* tl/models/families.py"):
        stages_of(nn.Linear(2, 2))


def test_owner_of_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match="layer10"):
        owner(stages_of(original("resnet18")), "layer10.weight")
