"""Weights fit or are refused, with the names; nothing in a file is ever executed."""

import os
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models as tv

from tl.config import ModelConfig
from tl.errors import UserError
from tl.models import published, weights, zoo

SHARED = Path(__file__).parents[3] / "shared" / "weights" / "squeezenet1_0-imagenet.pth"
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def donor():
    """A ResNet's weights with 1000 classes, by torchvision's names."""
    return zoo.build("resnet18", 1000).model.state_dict()


@pytest.fixture
def network():
    return zoo.build("resnet18", 3)


def saved_as(tmp_path, content, name="weights.pth"):
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def body_is(network, state):
    mine = network.model.state_dict()
    return all(torch.equal(mine[k], v) for k, v in state.items() if not k.startswith("fc."))


def test_all_but_the_head_is_loaded(tmp_path, network, donor):
    head = network.model.fc.weight.detach().clone()
    report = weights.load(network, saved_as(tmp_path, donor))
    assert body_is(network, donor)
    assert torch.equal(network.model.fc.weight, head)
    assert report.loaded == len(donor) - 2
    assert report.new == report.dropped == ("fc.weight", "fc.bias")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"model_state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
        lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")},
    ],
)
def test_what_training_scripts_save_is_understood(tmp_path, network, donor, wrap):
    weights.load(network, saved_as(tmp_path, wrap(donor)))
    assert body_is(network, donor)


def test_safetensors_of_half_precision_come_in_the_networks_own(tmp_path, network, donor):
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in donor.items()}
    save_file(half, tmp_path / "weights.safetensors")
    weights.load(network, str(tmp_path / "weights.safetensors"))
    assert network.model.conv1.weight.dtype == torch.float32
    assert torch.equal(network.model.conv1.weight, half["conv1.weight"].float())


def test_a_kept_head_must_fit(tmp_path, network, donor):
    path = saved_as(tmp_path, donor)
    with pytest.raises(UserError, match=r"fc.weight \(1000, 512\) instead of \(3, 512\)") as error:
        weights.load(network, path, keep_head=True)
    assert "the head that does not fit" in str(error.value)
    whole = zoo.build("resnet18", 1000)
    report = weights.load(whole, path, keep_head=True)
    assert report.new == report.dropped == ()
    assert torch.equal(whole.model.fc.weight, donor["fc.weight"])


def test_a_misfit_lists_names_both_ways_and_changes_nothing(tmp_path, network, donor):
    before = {k: v.clone() for k, v in network.model.state_dict().items()}
    state = {k: v for k, v in donor.items() if not k.startswith("layer4.")}
    state |= {"conv1.weight": torch.zeros(64, 3, 3, 3), "colour": torch.zeros(1)}
    with pytest.raises(UserError) as error:
        weights.load(network, saved_as(tmp_path, state))
    text = str(error.value)
    assert "25 missing: layer4.0.conv1.weight" in text
    assert "… and 15 more" in text
    assert "1 unexpected: colour" in text
    assert "conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)" in text
    assert all(torch.equal(v, before[k]) for k, v in network.model.state_dict().items())


def test_weights_of_another_architecture_are_called_so(tmp_path, donor):
    with pytest.raises(UserError, match="another architecture"):
        weights.load(zoo.build("squeezenet1_1", 2), saved_as(tmp_path, donor))


def test_values_that_are_no_numbers_are_refused(tmp_path, network, donor):
    path = saved_as(tmp_path, {**donor, "bn1.bias": torch.full((64,), torch.nan)})
    with pytest.raises(UserError, match=r"no finite numbers in 1 tensor: bn1.bias\. Give"):
        weights.load(network, path)


class _Evil:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, network, legacy):
    sentinel = tmp_path / "executed"
    path = tmp_path / "evil.pth"
    torch.save({"a": _Evil(sentinel)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"would run code \(.*system.*save_file"):
        weights.load(network, str(path))
    assert not sentinel.exists()


def test_a_whole_pickled_network_is_refused_with_the_way_to_convert_it(tmp_path, network):
    with pytest.raises(UserError, match=r"would run code .*ResNet.*state_dict"):
        weights.load(network, saved_as(tmp_path, network.model))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_is_refused_with_the_way_to_convert_it(tmp_path, network, protocol):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(network.model, protocol))
    with pytest.raises(UserError, match=r"plain pickle.*pickle\.load.*state_dict\(\)") as caught:
        weights.load(network, str(path))
    assert "weights_only" not in str(caught.value)  # PyTorch's own words are about its own versions


def test_a_head_that_does_not_fit_is_mended_by_a_key_that_there_is(tmp_path, network, donor):
    with pytest.raises(UserError, match=r"give model\.head=new"):
        weights.load(network, saved_as(tmp_path, donor), keep_head=True)
    assert "new" in ModelConfig.model_fields["head"].annotation.__args__
    weights.load(network, saved_as(tmp_path, donor), keep_head=False)  # what head=new does


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_is_refused(tmp_path, network):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(UserError, match="TorchScript"):
        weights.load(network, str(tmp_path / "script.pt"))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "./a"])
def test_a_missing_file_is_named(network, name):
    with pytest.raises(UserError, match="does not exist"):
        weights.load(network, name)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut", b"\x80\x02}q"])
def test_what_is_no_weights_file_is_refused(tmp_path, network, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"is empty|no readable weights file"):
        weights.load(network, str(tmp_path / name))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.zeros(2)])
def test_a_file_without_named_tensors_is_refused(tmp_path, network, content):
    with pytest.raises(UserError, match=r"not the named tensors|not hold a network's weights"):
        weights.load(network, saved_as(tmp_path, content))


def test_a_folder_without_a_model_is_refused(tmp_path, network):
    with pytest.raises(UserError, match="folder without a model"):
        weights.load(network, str(tmp_path))


def test_no_weights_leave_all_new(network):
    report = weights.load(network, None)
    assert (report.source, report.loaded) == ("random weights", 0)
    assert len(report.new) == len(network.model.state_dict())


def test_unknown_weights_offer_the_nearest(network):
    with pytest.raises(UserError, match="Did you mean 'IMAGENET1K_V1'"):
        weights.load(network, "IMAGENET1K_V3")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.mark.parametrize("name", ["DEFAULT", "imagenet1k_v1"])
def test_without_a_network_the_error_says_what_to_put_where(network, offline, name):
    assert not weights.is_cached("resnet18", name)
    for attempt in (
        lambda: weights.load(network, name),
        lambda: weights.load(network, name, fetch=False),
        lambda: weights.download("resnet18", name),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        text = str(error.value)
        assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in text
        assert str(offline / "resnet18-f37072fd.pth") in text
        assert "model.weights=/path/to/file" in text


def test_weights_in_the_cache_need_no_network(network, donor, offline):
    offline.mkdir(parents=True)
    saved_as(offline, donor, "resnet18-f37072fd.pth")
    assert weights.is_cached("resnet18", "default")
    weights.download("resnet18", "DEFAULT")
    weights.load(network, "DEFAULT", fetch=False)
    assert body_is(network, donor)


def test_paths_and_random_weights_need_no_download(offline):
    assert weights.is_cached("resnet18", None)
    assert weights.is_cached("resnet18", "some/file.pth")
    weights.download("resnet18", None)


@pytest.mark.parametrize("name", zoo.architectures())
def test_every_published_file_has_a_place_in_the_cache(name, offline):
    for entry in tv.get_model_weights(name).__members__:
        assert published.cache_file(name, entry).parent == offline


def test_an_auxiliary_classifier_that_a_file_lacks_stays_new(tmp_path):
    state = zoo.build("googlenet", 1000).model.state_dict()
    without = {k: v for k, v in state.items() if not k.startswith("aux")}
    network = zoo.build("googlenet", 3)
    report = weights.load(network, saved_as(tmp_path, without))
    assert {"aux1.conv.conv.weight", "aux2.fc2.bias", "fc.weight"} <= set(report.new)
    assert all(name.startswith(("aux", "fc.")) for name in report.new)
    report = weights.load(network, saved_as(tmp_path, state))
    assert {n.rpartition(".")[0] for n in report.new} == {"fc", "aux1.fc2", "aux2.fc2"}


def test_an_auxiliary_classifier_that_the_network_lacks_is_dropped(tmp_path):
    state = zoo.build("inception_v3", 10).model.state_dict()
    report = weights.load(zoo.build("inception_v3", 3, 128), saved_as(tmp_path, state))
    assert "AuxLogits.fc.weight" in report.dropped
    assert set(report.new) == {"fc.weight", "fc.bias"}


def test_a_vit_of_another_image_size_gets_interpolated_positions(tmp_path):
    state = zoo.build("vit_b_32", 10, 64).model.state_dict()
    old = {k.replace("mlp.0.", "mlp.linear_1."): v for k, v in state.items()}
    old = {k.replace("mlp.3.", "mlp.linear_2."): v for k, v in old.items()}
    network = zoo.build("vit_b_32", 3, 96)
    weights.load(network, saved_as(tmp_path, old))  # with the names of the published files
    positions = network.model.encoder.pos_embedding
    assert positions.shape == (1, 10, 768)
    assert torch.equal(positions[:, :1], state["encoder.pos_embedding"][:, :1])
    # Corners stay where they are (align_corners).
    torch.testing.assert_close(positions[:, 1], state["encoder.pos_embedding"][:, 1])
    assert torch.equal(
        network.model.encoder.layers[0].mlp[0].weight,
        state["encoder.layers.encoder_layer_0.mlp.0.weight"],
    )


def test_densenets_older_names_are_understood(tmp_path):
    state = zoo.build("densenet121", 10).model.state_dict()
    old = {}
    for name, value in state.items():
        for word in ("norm", "conv"):
            for i in "12":
                if "denselayer" in name:
                    name = name.replace(f".{word}{i}.", f".{word}.{i}.")
        old[name] = value
    assert set(old) != set(state)
    assert len(weights.load(zoo.build("densenet121", 3), saved_as(tmp_path, old)).new) == 2


@pytest.mark.skipif(
    not SHARED.exists() and not os.environ.get("CI"), reason="needs ../shared/weights"
)
def test_pretrained_squeezenet_gives_torchvisions_own_logits():
    assert SHARED.exists(), "CI needs ../shared/weights"
    original = tv.squeezenet1_0().eval()
    original.load_state_dict(torch.load(SHARED, weights_only=True))
    network = zoo.build("squeezenet1_0", 1000).eval()
    report = weights.load(network, str(SHARED), keep_head=True)
    assert report.new == report.dropped == ()
    assert network.arguments["final_relu"] is True
    with torch.no_grad():
        assert torch.equal(network(X), original(X))
