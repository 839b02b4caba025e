"""A bottleneck between the pooled features and the head, and what becomes of it in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tl.arguments import load
from tl.engine.prepare import network_for
from tl.errors import UserError
from tl.models import bottleneck, saved, zoo
from tl.models.preprocessing import preprocessing_of


@pytest.mark.parametrize(
    ("name", "size"), [("squeezenet1_1", 64), ("resnet18", 64), ("vit_b_16", 32), ("swin_t", 64)]
)
def test_it_stands_between_the_pooled_features_and_a_linear_head(name: str, size: int) -> None:
    network = zoo.build(name, 5, size)
    before = network.stages[-2].name
    bottleneck.put(network, 7)
    network.eval()
    images = torch.randn(2, 3, size, size)
    logits, _, outputs = network.forward_with_stages(images, keep=(before, "bottleneck"))
    assert [stage.name for stage in network.stages[-3:]] == [before, "bottleneck", "head"]
    assert outputs[before].dim() == 2
    linear, norm = network.model.bottleneck[0], network.model.bottleneck[1]
    expected = nn.functional.relu(norm(linear(outputs[before])))
    torch.testing.assert_close(outputs["bottleneck"], expected)
    torch.testing.assert_close(logits, network.model.reuse_head(expected))
    names = [n for n, _ in network.model.named_parameters() if network.stage_of(n) == "head"]
    assert names == ["reuse_head.weight", "reuse_head.bias"]


def config_of(*overrides: str):
    return load(None, ["model.name=squeezenet1_1", *overrides], environ={}).config


def test_a_run_goes_on_from_a_network_with_one(tmp_path: Path) -> None:
    network, preprocessing, report = network_for(
        config_of("model.weights=null", "model.bottleneck=6"), ["a", "b"]
    )
    assert {"bottleneck.0.weight", "reuse_head.weight"} <= set(report.new)
    saved.save(network, ["a", "b"], preprocessing, tmp_path)
    for words in ([], ["model.bottleneck=6"]):
        again, _, report = network_for(config_of(f"model.weights={tmp_path}", *words), ["a", "b"])
        assert not report.new
        for name, tensor in network.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], tensor)
    other, _, report = network_for(config_of(f"model.weights={tmp_path}"), ["a", "b", "c"])
    assert set(report.new) == {"reuse_head.weight", "reuse_head.bias"}
    assert torch.equal(other.model.bottleneck[0].weight, network.model.bottleneck[0].weight)
    assert saved.load(tmp_path).network.arguments["bottleneck"] == 6


def test_weights_without_one_get_a_new_one_and_a_new_head(tmp_path: Path) -> None:
    plain = zoo.build("squeezenet1_1", 2)
    saved.save(plain, ["a", "b"], preprocessing_of("squeezenet1_1", None), tmp_path)
    words = [f"model.weights={tmp_path}", "model.head=new", "model.bottleneck=6"]
    network, _, report = network_for(config_of(*words), ["a", "b"])
    kept = network.model.features[0].weight
    assert torch.equal(kept, plain.model.features[0].weight)
    assert not hasattr(network.model, "classifier")
    fresh = {n for n in network.model.state_dict() if n.startswith(("bottleneck", "reuse_head"))}
    assert set(report.new) == fresh


def test_another_width_than_the_weights_have_is_refused(tmp_path: Path) -> None:
    network, preprocessing, _ = network_for(
        config_of("model.weights=null", "model.bottleneck=6"), ["a", "b"]
    )
    saved.save(network, ["a", "b"], preprocessing, tmp_path / "with")
    saved.save(zoo.build("squeezenet1_1", 2), ["a", "b"], preprocessing, tmp_path / "without")
    with pytest.raises(UserError, match=r"has one of 6: give model\.bottleneck=6"):
        network_for(
            config_of(f"model.weights={tmp_path / 'with'}", "model.bottleneck=5"), ["a", "b"]
        )
    with pytest.raises(UserError, match=r"has none: give model\.head=new"):
        network_for(
            config_of(f"model.weights={tmp_path / 'without'}", "model.bottleneck=5"), ["a", "b"]
        )


def test_it_learns_at_the_heads_rate_and_the_stages_before_it_are_counted_from_there() -> None:
    network = zoo.build("resnet18", 3, 64)
    bottleneck.put(network, 4)
    depths = {name: network.depth_of(f"{name}.x") for name in ("reuse_head", "bottleneck")}
    assert depths == {"reuse_head": 0, "bottleneck": 0}
    assert [network.depth_of(f"layer{i}.0.conv1.weight") for i in (4, 3, 1)] == [1, 2, 4]


def test_it_goes_on_a_network_that_was_cut() -> None:
    network = zoo.build("resnet18", 3, 64, keep=2)
    bottleneck.put(network, 4)
    again = zoo.rebuild("resnet18", network.arguments)
    again.model.load_state_dict(network.model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again.eval()(images), network.eval()(images))
