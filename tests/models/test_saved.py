"""A model folder gives back the same network, or says why it cannot."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from tl.errors import UserError
from tl.models import saved, weights, zoo
from tl.models.preprocessing import preprocessing_of


@pytest.fixture(autouse=True)
def _one_thread():
    """For one small image, threads that wait for each other on a busy machine cost far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CLASSES = ["ant", "bee", "Käfer"]


@pytest.fixture
def folder(tmp_path):
    network = zoo.build("squeezenet1_1", 3)
    saved.save(network, CLASSES, preprocessing_of("squeezenet1_1", None), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "mnasnet0_5", "swin_t"])
def test_a_saved_model_comes_back_bit_for_bit(name, tmp_path):
    network = zoo.build(name, 3, 64).eval().to(memory_format=torch.channels_last)
    preprocessing = preprocessing_of(name, None)
    saved.save(network, CLASSES, preprocessing, tmp_path / "model")
    for place in (tmp_path, tmp_path / "model"):  # a run folder, a model folder
        loaded = saved.load(place)
        assert not loaded.network.training
        assert (loaded.classes, loaded.preprocessing) == (CLASSES, preprocessing)
        for key, value in network.model.state_dict().items():
            assert torch.equal(value, loaded.network.model.state_dict()[key]), key
        with torch.no_grad():
            outputs = loaded.network.to(memory_format=torch.channels_last)(X)
            assert torch.equal(outputs, network(X))


def test_files_are_whole_and_plain(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["format"] == 1
    assert config["architecture"] == "squeezenet1_1"
    assert config["arguments"] == {"num_classes": 3, "final_relu": False}
    assert "classifier.1.weight" in load_file(folder / "model.safetensors")


def test_saving_again_replaces(folder):
    other = zoo.build("resnet18", 3)
    saved.save(other, CLASSES, preprocessing_of("resnet18", None), folder)
    assert saved.load(folder).network.architecture == "resnet18"


def test_sha256_is_that_of_the_file(folder):
    path = folder / "model.safetensors"
    assert saved.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_class_names_must_be_as_many_as_outputs(tmp_path):
    network = zoo.build("squeezenet1_1", 3)
    with pytest.raises(UserError, match="3 outputs, but 2 class names"):
        saved.save(network, ["a", "b"], preprocessing_of("squeezenet1_1", None), tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        saved.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, and this version reads 1"),
        ({"classes": ["a"]}, "3 outputs, but 1 class names"),
        ({"classes": None}, "classes missing"),
        ({"architecture": "resnet18", "arguments": {"num_classes": 3}}, "does not fit resnet18"),
        ({"architecture": "resnet19", "arguments": {"num_classes": 3}}, "Did you mean"),
        ({"preprocessing": {}}, "preprocessing"),
    ],
)
def test_a_config_that_is_wrong_is_refused(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}))
    with pytest.raises(UserError, match=message):
        saved.load(folder)


def test_a_broken_config_and_broken_weights_are_refused(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(UserError, match="no readable weights file"):
        saved.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        saved.load(folder)


def test_a_run_folder_gives_weights_to_a_new_run(folder):
    network = zoo.build("squeezenet1_1", 5)
    for place in (folder, folder.parent, folder / "model.safetensors"):
        report = weights.load(network, str(place))
        assert set(report.new) == {"classifier.1.weight", "classifier.1.bias"}
        assert set(report.dropped) == set(report.new)
    assert preprocessing_of("squeezenet1_1", str(folder)) == preprocessing_of("squeezenet1_1", None)


def test_a_head_of_ours_is_kept_as_it_was_trained(folder):
    network = zoo.build("squeezenet1_1", 3)
    weights.load(network, str(folder), keep_head=True)
    assert network.arguments["final_relu"] is False
    with torch.no_grad():
        assert torch.equal(network.eval()(X), saved.load(folder).network(X))
