"""The head that weights came with is there beside the network that they were loaded into."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tl.errors import UserError
from tl.models import saved, weights, zoo
from tl.models.preprocessing import preprocessing_of, with_image_size
from tl.models.source_head import load_source_head

# SqueezeNet's head is a convolution with a ReLU after it, MobileNet's has dropout.
NETWORKS = ["shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small", "timm:test_resnet"]


@pytest.mark.parametrize("architecture", NETWORKS)
def test_on_the_new_networks_features_it_gives_the_old_networks_logits(
    architecture: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    old, new = zoo.build(architecture, 7, 64).eval(), zoo.build(architecture, 3, 64).eval()
    if architecture.startswith("squeezenet"):
        zoo.set_final_relu(old, True)  # as in published weights
    file = str(tmp_path / "old.safetensors")
    save_file({name: t.contiguous() for name, t in old.model.state_dict().items()}, file)
    weights.load(new, file)
    head = load_source_head(new, file, "this")
    images = torch.randn(2, 3, 64, 64)
    body = len(new.stages) - 1
    with torch.no_grad():
        assert torch.equal(head(new.features(images, body)), old(images))
        assert new(images).shape == (2, 3)


def test_the_head_of_a_models_folder_is_as_it_was_saved(tmp_path: Path) -> None:
    old, new = zoo.build("squeezenet1_1", 4, 64).eval(), zoo.build("squeezenet1_1", 3, 64)
    preprocessing = with_image_size(preprocessing_of("squeezenet1_1", None), 64)
    saved.save(old, ["a", "b", "c", "d"], preprocessing, tmp_path)
    weights.load(new, str(tmp_path))
    head = load_source_head(new, str(tmp_path), "this")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = head(new.eval().features(images, len(new.stages) - 1))
        assert torch.equal(logits, old(images))
    assert (logits < 0).any()  # it was trained without the final ReLU


def test_weights_that_have_no_such_head_are_refused(tmp_path: Path) -> None:
    network = zoo.build("shufflenet_v2_x0_5", 3, 64)
    with pytest.raises(UserError, match=r"this needs pretrained weights"):
        load_source_head(network, None, "this")
    state = {n: t.contiguous() for n, t in network.model.state_dict().items()}
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match=r"has none \(fc\.weight, fc\.bias missing\)"):
        load_source_head(network, str(tmp_path / "bare.safetensors"), "this")
    save_file({**state, "fc.weight": torch.zeros(3, 9)}, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"another shape \(fc\.weight \(3, 9\)\)"):
        load_source_head(network, str(tmp_path / "narrow.safetensors"), "this")
