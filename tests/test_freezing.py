"""Promise 1, frozen means frozen: what trains, what stays in eval mode, and the proof of it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from freezing_toys import REAL, X, all_names, below, frozen, on_meta, step, toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tl.config import OptimizerConfig
from tl.errors import UserError
from tl.freeze_plan import (
    assert_unchanged,
    frozen_digests,
)
from tl.freezing import FREEZING, freeze, trainable_names
from tl.models import zoo
from tl.models.network import Network
from tl.models.stages import Stage, is_below
from tl.optim import make_optimizer, parameter_groups


@pytest.mark.parametrize(
    ("architecture", "train", "prefixes"),
    [
        ("resnet18", "head", ["fc"]),
        ("resnet18", "last_stages(1)", ["fc"]),
        ("resnet18", "last_stages(2)", ["layer4", "fc"]),
        ("resnet18", "from_stage(layer3)", ["layer3", "layer4", "fc"]),
        ("resnet18", "from_stage(layer1)", [*(f"layer{i}" for i in range(1, 5)), "fc"]),
        ("resnet18", r"regex(^layer4\.1|fc\.bias)", ["layer4.1", "fc.bias"]),
        ("mobilenet_v3_small", "head", ["classifier.3"]),
        ("mobilenet_v3_small", "last_stages(3)", ["features.12", "classifier.0", "classifier.3"]),
        ("squeezenet1_0", "head", ["classifier.1"]),
        ("squeezenet1_0", "from_stage(fire9)", ["features.12", "classifier.1"]),
        ("googlenet", "head", ["fc"]),
        ("googlenet", "from_stage(inception5a)", ["inception5a", "inception5b", "fc"]),
        # An auxiliary classifier belongs to the stage it hangs on.
        (
            "googlenet",
            "from_stage(inception4d)",
            ["inception4d", "aux2", "inception4e", "inception5a", "inception5b", "fc"],
        ),
        ("vit_b_16", "head", ["heads.head"]),
        (
            "vit_b_16",
            "last_stages(2)",
            ["encoder.layers.encoder_layer_11", "encoder.ln", "heads.head"],
        ),
        ("alexnet", "last_stages(2)", ["classifier"]),
        ("resnet18", "freeze_embed", [*(f"layer{i}" for i in range(1, 5)), "fc"]),
        ("vit_b_16", "freeze_embed", ["encoder.layers", "encoder.ln", "heads.head"]),
        ("convnext_tiny", "freeze_embed", [*(f"features.{i}" for i in range(1, 8)), "classifier"]),
        ("resnet18", "freeze_head", ["conv1", "bn1", *(f"layer{i}" for i in range(1, 5))]),
        ("squeezenet1_0", "freeze_head", ["features"]),
        ("resnet18", "surgical(layer1)", ["layer1", "fc"]),
        ("squeezenet1_0", "surgical(stem)", ["features.0", "classifier.1"]),
    ],
)
def test_a_strategy_selects_exactly_these(
    architecture: str, train: str, prefixes: list[str]
) -> None:
    network = on_meta(architecture)
    expected = below(network, *prefixes)
    assert all(below(network, prefix) for prefix in prefixes)
    assert trainable_names(network, train) == expected


@pytest.mark.parametrize("architecture", REAL)
def test_full_selects_everything(architecture: str) -> None:
    network = on_meta(architecture)
    assert trainable_names(network, "full") == all_names(network)
    assert trainable_names(network, f"last_stages({len(network.stages)})") == all_names(network)


def heads(network: Network) -> set[str]:
    auxiliary = [stage.aux.head for stage in network.stages if stage.aux]
    return below(network, *network.stages[-1].owns, *auxiliary)


@pytest.mark.parametrize("architecture", REAL)
def test_norm_selects_the_normalisation_layers_and_the_heads(architecture: str) -> None:
    network = on_meta(architecture)
    layers = {
        name
        for name, module in network.model.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
    }
    expected = below(network, *layers) | heads(network)
    assert trainable_names(network, "norm") == expected
    assert bool(layers) == (architecture not in ("squeezenet1_0", "alexnet"))


@pytest.mark.parametrize("architecture", REAL)
def test_bias_selects_the_biases_and_the_heads(architecture: str) -> None:
    network = on_meta(architecture)
    biases = {name for name in all_names(network) if name.endswith(".bias")}
    assert trainable_names(network, "bias") == biases | heads(network)
    assert len(biases) > 2


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("haed", r"unknown freezing strategy 'haed'.*Did you mean 'head'\?"),
        ("head(2)", r"head takes no argument, and was given head\(2\)"),
        ("full(1)", "full takes no argument"),
        ("last_stages", r"last_stages takes a number of stages, such as last_stages\(2\)"),
        ("last_stages()", "takes a number of stages"),
        ("last_stages(0)", "takes a number of stages"),
        ("last_stages(-1)", "takes a number of stages"),
        ("last_stages(²)", "takes a number of stages"),
        (f"last_stages({'9' * 5000})", "takes a number of stages"),
        ("last_stages(7)", "resnet18 has 6 stages: stem, layer1, layer2, layer3, layer4, head"),
        ("from_stage(layer5)", r"unknown stage 'layer5' .*Did you mean 'layer"),
        ("from_stage", "unknown stage"),
        (
            "surgical(layer5)",
            r"'layer5' \(surgical, resnet18\)\. Did you mean 'layer",
        ),
        ("surgical", "unknown stage"),
        ("freeze_embed(1)", "freeze_embed takes no argument"),
        ("regex(()", "not a regular expression"),
        ("regex(no_such)", "matches no parameter of resnet18. Its parameters are conv1.weight"),
        ("regex()", "matches no parameter"),
        ("math:no_such", "cannot be imported"),
    ],
)
def test_a_strategy_that_means_nothing_is_refused(train: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainable_names(on_meta("resnet18"), train)


def test_all_but_the_first_of_one_stage_is_nothing() -> None:
    network = toy()
    network.stages = (Stage("all", ("one",), ("one", "two", "hidden", "fc")),)
    with pytest.raises(UserError, match="train: freeze_embed leaves nothing to train"):
        trainable_names(network, "freeze_embed")


def test_a_strategy_from_outside_is_used_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def only(network, argument):\n    return {argument} if argument else set()\n"
    (tmp_path / "freezing_from_outside.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    network, only = on_meta("resnet18"), "freezing_from_outside:only"
    assert trainable_names(network, f"{only}(fc.bias)") == {"fc.bias"}
    with pytest.raises(UserError, match=r"\['fc.bais'\], which are no parameters"):
        trainable_names(network, f"{only}(fc.bais)")
    with pytest.raises(UserError, match="leaves nothing to train"):
        trainable_names(network, only)


def test_the_example_of_a_strategy_is_right_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    [example] = re.findall(r"```python\n(def even_stages.*?)```", text, re.DOTALL)
    code = f"from tl.models.network import Network\n\n{example}"
    (tmp_path / "even.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    network = on_meta("resnet18")
    assert trainable_names(network, "even:even_stages") == below(network, "fc", "layer3", "layer1")
    with pytest.raises(UserError, match=r"even_stages takes no argument, and was given"):
        trainable_names(network, "even:even_stages(3)")
    (tmp_path / "odd.py").write_text("even_stages = 3\n")
    with pytest.raises(UserError, match="odd:even_stages is no function but 3"):
        trainable_names(network, "odd:even_stages")


# ---------------------------------------------------------------------------------- what is derived


@pytest.mark.parametrize("architecture", REAL)
@pytest.mark.parametrize("train", ["full", "head", "last_stages(3)", "norm", "bias"])
def test_the_frozen_prefix_is_the_longest_run_of_stages_where_nothing_trains(
    architecture: str, train: str
) -> None:
    network = frozen(train, make=lambda: on_meta(architecture))
    names = trainable_names(network, train)
    parameters = dict(network.model.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == names
    training = {network.stage_of(name) for name in names}
    order = [stage.name for stage in network.stages]
    assert network.frozen_prefix == min(order.index(stage) for stage in training)


@pytest.mark.parametrize("architecture", REAL)
def test_frozen_stages_stay_in_eval_mode_after_any_train(architecture: str) -> None:
    network = frozen("head", make=lambda: on_meta(architecture))
    network.train().eval().train()
    network.model.eval()
    network.train(True)
    last = network.stages[-1].steps
    for name, module in network.model.named_modules():
        # A container that holds stages of both kinds has no behaviour of its own.
        if not list(module.children()):
            ours = any(isinstance(step, str) and is_below(name, step) for step in last)
            assert module.training == ours, name


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(sorted(all_names(toy()))), min_size=1))
def test_any_set_of_parameters_trains_and_nothing_else_moves(names: set[str]) -> None:
    network = toy()
    freeze(network, frozenset(names))
    before = {k: v.clone() for k, v in network.model.state_dict().items()}
    digests = frozen_digests(network)
    step(network)
    after = network.model.state_dict()
    assert frozen_digests(network) == digests
    moved = {name for name in all_names(network) if not torch.equal(before[name], after[name])}
    assert moved <= names
    # Every parameter of every trained stage had a gradient; weight decay moves it even if zero.
    assert {n for n in names if before[n].any()} <= moved
    for i in range(network.frozen_prefix):
        stage = network.stages[i].name
        for name, tensor in after.items():
            assert network.stage_of(name) != stage or torch.equal(tensor, before[name])


def test_frozen_batchnorm_statistics_do_not_move() -> None:
    network = frozen("last_stages(3)")
    one, two = network.model.one.bn, network.model.two.bn
    before = copy.deepcopy(one.state_dict())
    step(network)
    assert all(torch.equal(one.state_dict()[key], before[key]) for key in before)
    assert (one.num_batches_tracked, two.num_batches_tracked) == (0, 3)
    assert not torch.equal(two.running_mean, torch.zeros(4))


def test_dropout_does_not_fire_in_frozen_stages() -> None:
    network = frozen("head")
    network.train()
    assert network.frozen_prefix == 3
    torch.manual_seed(1)
    first = network.features(X, 3)
    torch.manual_seed(2)
    assert torch.equal(network.features(X, 3), first)
    # The head's own does: it belongs to what trains.
    assert not torch.equal(network(X), network(X))
    network.eval()
    assert torch.equal(network.features(X, 3), first)


def test_dropout_of_a_frozen_head_does_not_fire() -> None:
    network = frozen("regex(two)")
    network.train()
    assert not network.model.drop.training
    assert not network.model.hidden_drop.training
    assert network.model.two.drop.training


def test_batch_norm_frozen_keeps_statistics_where_a_layer_trains_and_dropout_fires() -> None:
    network = frozen("full", batch_norm="frozen")
    before = copy.deepcopy(network.model.state_dict())
    step(network)
    after = network.model.state_dict()
    for name in after:
        # Weights and biases of BatchNorm train all the same.
        assert torch.equal(before[name], after[name]) == (
            "running" in name or "num_batches" in name
        ), name
    assert network.model.one.drop.training


@pytest.mark.parametrize(
    ("train", "batch_norm", "moves"),
    [
        ("norm", "train", True), ("norm", "frozen", False), ("full", "train", True),
        # Only the biases train, and the weights do not: statistics that moved would rescale them.
        ("bias", "train", False), ("bias", "frozen", False),
        (r"regex(conv)", "train", False), (r"regex(bn\.weight)", "train", True),
    ],
)  # fmt: skip
def test_batchnorm_gathers_statistics_only_where_its_weight_trains(
    train: str, batch_norm: str, moves: bool
) -> None:
    network = frozen(train, batch_norm)
    step(network)
    for block in (network.model.one, network.model.two):
        assert block.bn.training == moves
        assert (block.bn.num_batches_tracked.item() == 3) == moves


def test_freezing_again_undoes_what_was_frozen_before() -> None:
    network = frozen("head", "frozen")
    freeze(network, trainable_names(network, "full"))
    assert (network.frozen_prefix, network.eval_modules) == (0, frozenset())
    network.train()
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad for p in network.parameters())


def test_freezing_keeps_the_mode() -> None:
    network = toy().eval()
    freeze(network, trainable_names(network, "full"))
    assert not any(module.training for module in network.modules())


# -------------------------------------------------------------------------- gradients and memory


@pytest.mark.parametrize("train", ["head", "last_stages(2)", "last_stages(3)"])
def test_there_is_no_graph_below_the_cut(train: str) -> None:
    network = frozen(train)
    network.train()
    x = X.clone().requires_grad_()  # even for an input that asks for one
    cut = network.features(x, network.frozen_prefix)
    assert cut.grad_fn is None
    assert not cut.requires_grad
    network(x).sum().backward()
    assert x.grad is None
    for name, parameter in network.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_nothing_of_the_prefix_is_kept_for_a_backward_pass() -> None:
    saved: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    def shapes(train: str) -> list[tuple[int, ...]]:
        saved.clear()
        network = frozen(train)
        network.train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(X)
        return list(saved)

    assert any(len(shape) == 4 for shape in shapes("full"))
    assert not any(len(shape) == 4 for shape in shapes("last_stages(2)"))


def test_frozen_parameters_never_reach_the_optimizer() -> None:
    network = frozen("last_stages(2)")
    config = OptimizerConfig()
    optimizer = make_optimizer(parameter_groups(network.model.named_parameters(), config), config)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trains = {id(p) for p in network.model.parameters() if p.requires_grad}
    assert held == trains
    assert 0 < len(held) < len(list(network.model.parameters()))


# ---------------------------------------------------------------------------------------- the proof


def test_every_strategy_has_a_test_above() -> None:
    in_a_file_of_its_own = {"lora"}
    assert set(FREEZING) - in_a_file_of_its_own == {
        "full", "head", "last_stages", "from_stage", "regex", "norm", "bias", "freeze_embed",
        "freeze_head", "surgical",
    }  # fmt: skip


def test_a_real_network_trains_its_head_and_moves_nothing_else() -> None:
    """ResNet-18 with its 20 BatchNorms, on images, and the proof that a run gives."""
    torch.manual_seed(0)
    network = zoo.build("resnet18", 3, 32)
    freeze(network, trainable_names(network, "head"))
    before: dict[str, Any] = frozen_digests(network)
    assert len(before) == 120  # 62 parameters less 2, and 3 buffers of each BatchNorm
    images = torch.randn(4, 3, 32, 32)
    config = OptimizerConfig(lr=0.1, weight_decay=0.1)
    optimizer = make_optimizer(parameter_groups(network.model.named_parameters(), config), config)
    network.train()
    head = network.model.get_parameter("fc.weight").clone()
    nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    assert_unchanged(before, frozen_digests(network), "head")
    assert not torch.equal(network.model.get_parameter("fc.weight"), head)
