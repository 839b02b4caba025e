"""Layer re-use, grafts, rows of a head and grey images, from a config to predictions."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from launch import evaluate, predict, train
from tl.arguments import load
from tl.data.transforms import normalise, plain_view
from tl.models import saved, zoo

from .conftest import ROOT, picture

CLASSES = ["ants", "bees"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images of two classes: grey ones, as PNG of one channel."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(8):
        path = folder / CLASSES[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture(i).convert("L").save(path)
    return folder


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("donor") / "donor.pth"
    torch.save(zoo.build("squeezenet1_1", 1000).model.state_dict(), path)
    return path


def run(data, folder, *more, model="squeezenet1_1"):
    return train.main([
        f"data.root={data}", f"run_dir={folder}", f"model.name={model}", "data.image_size=64",
        "epochs=1", "global_batch_size=4", "data.workers=0", "tracking.trackers=[jsonl]",
        "optimizer.lr=0.0001", "augment=none", *more,
    ])  # fmt: skip


def predicted(folder, images, output):
    assert predict.main([str(folder), str(images), "--output", str(output)]) == 0
    with output.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_part_of_a_network_trains_predicts_and_goes_on(data, donor, tmp_path, capfd):
    part = f"model.weights={donor}", "model.reuse.upto=fire4"
    assert run(data, tmp_path / "run", *part, "strategy=full") == 0
    folder = tmp_path / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["arguments"] == {"num_classes": 2, "kept_stages": 4}
    names = load_file(folder / "model.safetensors")
    assert not any(name.startswith(("features.7", "classifier")) for name in names)
    assert (folder / "model.safetensors").stat().st_size < donor.stat().st_size / 15
    rows = predicted(tmp_path / "run", data, tmp_path / "p.csv")
    assert len(rows) == 8
    assert evaluate.main([str(tmp_path / "run"), str(data)]) == 0
    # Its own head is kept where the classes are its own; without the cut it does not fit.
    more = f"model.weights={tmp_path / 'run'}", "strategy=head", "optimizer.lr=0"
    assert run(data, tmp_path / "more", *more, "model.reuse.stages=4") == 0
    again = load_file(tmp_path / "more" / "last" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in names.items())
    capfd.readouterr()
    assert run(data, tmp_path / "whole", *more) == 2
    assert "Give model.reuse.stages=4, or fewer" in capfd.readouterr().err


def test_a_part_goes_on_after_a_stop_as_if_there_had_been_none(data, donor, tmp_path):
    keys = f"model.weights={donor}", "model.reuse.stages=3", "strategy=full", "epochs=2"
    assert run(data, tmp_path / "whole", *keys) == 0
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "stop").touch()
    assert run(data, tmp_path / "cut", *keys, "--resume", "auto") == 75
    assert run(data, tmp_path / "cut", *keys, "--resume", "auto") == 0
    one, two = (load_file(tmp_path / n / "last" / "model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(two[name], value) for name, value in one.items())


def test_grey_images_reach_the_network_as_one_channel(data, donor, tmp_path):
    """The network sees what Pillow has in the file, and nothing of it is changed on the way."""
    keys = f"model.weights={donor}", "data.channels=1", "strategy=head"
    assert run(data, tmp_path / "run", *keys) == 0
    model = saved.load(tmp_path / "run")
    assert model.network.in_channels == model.preprocessing.channels == 1
    assert model.network.model.features[0].weight.shape[1] == 1
    assert evaluate.main([str(tmp_path / "run"), str(data)]) == 0
    rows = predicted(tmp_path / "run", data / "ants", tmp_path / "p.csv")
    view = plain_view(model.preprocessing)
    for row in rows:
        seen = view(Image.open(row["path"]).convert("RGB"))
        assert seen.shape == (1, 64, 64)
        with torch.no_grad():
            logits = model.network(normalise(seen[None], model.preprocessing))
        expected = logits.softmax(1)[0].max().item()
        assert max(float(row[f"p({name})"]) for name in CLASSES) == pytest.approx(
            expected, abs=1e-4
        )
    # A run that goes on from it is grey too, unless it is told otherwise.
    more = f"model.weights={tmp_path / 'run'}", "strategy=head"
    assert run(data, tmp_path / "more", *more) == 0
    assert saved.load(tmp_path / "more").network.in_channels == 1
    assert run(data, tmp_path / "rgb", *more, "data.channels=3") == 0
    assert saved.load(tmp_path / "rgb").network.in_channels == 3


def test_a_grey_file_is_seen_as_it_is(tmp_path):
    """RGB on the way, and back: all 256 values come through."""
    recipe = saved.Preprocessing(16, 16, (0.5,), (0.25,), "bilinear")
    values = torch.arange(256, dtype=torch.uint8).view(16, 16)
    seen = plain_view(recipe)(Image.fromarray(values.numpy()).convert("RGB"))
    assert torch.equal(seen[0], values)


def test_grafts_and_rows_of_the_head_come_from_a_config(data, donor, tmp_path):
    fire3 = r"match: 'features\.4\.(.*)', rename: 'features.4.\1'"
    grafts = f"[{{weights: {donor}, from: features.12}}, {{weights: {donor}, {fire3}}}]"
    keys = "model.weights=null", f"model.reuse.graft={grafts}", "strategy=head", "optimizer.lr=0"
    assert run(data, tmp_path / "run", *keys) == 0
    mine = load_file(tmp_path / "run" / "last" / "model.safetensors")
    theirs = torch.load(donor, weights_only=True)
    for name, value in mine.items():
        if name.endswith("weight"):  # biases begin as zeros everywhere
            grafted = name.startswith(("features.12.", "features.4."))
            assert torch.equal(value, theirs[name]) == grafted, name
    # What the run was given is in its config.yaml, from which it can be run again.
    again = [str(tmp_path / "run" / "config.yaml"), f"run_dir={tmp_path / 'again'}"]
    assert train.main(again) == 0
    twin = load_file(tmp_path / "again" / "last" / "model.safetensors")
    assert all(torch.equal(twin[name], value) for name, value in mine.items())

    rows = "model.head=classes", "model.head_classes={ants: ant, bees: 309}"
    keys = f"model.weights={donor}", *rows, "strategy=full", "optimizer.lr=0"
    assert run(data, tmp_path / "rows", *keys) == 0
    head = load_file(tmp_path / "rows" / "last" / "model.safetensors")["classifier.1.weight"]
    assert torch.equal(head, theirs["classifier.1.weight"][[310, 309]])


def test_the_documentations_grafts_are_a_config(tmp_path):
    text = (ROOT / "docs" / "reuse.md").read_text("utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "config.yaml").write_text(block)
    first, _, third = load(tmp_path / "config.yaml", [], environ={}).config.model.reuse.graft
    assert (first.from_, third.rename) == ("layer1", r"\1.\2")
    assert Path(first.weights).is_absolute()  # good from any folder, as config.yaml has it


MISTAKES = {
    "model.reuse.upto=fire44": "Did you mean 'fire4'",
    "model.reuse.stages=40": "has 9 stages before its head",
    "model.reuse={stages: 2, upto: fire4}": "give either stages or upto",
    "model.reuse.graft=[{weights: DONOR, from: layer1}]": "Nearest in the network: stem",
    "model.reuse.graft=[{weights: DONOR, form: layer1}]": "unknown key",
    "model.reuse.graft=[{weights: none.pth, from: features}]": "does not exist",
    "model.reuse.graft=[{weights: DONOR, match: '('}]": "no regular expression",
    "model.head=classes": "none of the classes ants, bees is one of the weights' own",
    "model.head_classes={ants: ant}": "head_classes needs head: classes",
    "model.weights_key=teacher": "unknown key in ",
    "data.channels=2": "data.channels",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_2_before_anything_is_written(mistake, data, donor, tmp_path, capfd):
    asked = mistake.replace("DONOR", str(donor))
    assert run(data, tmp_path / "run", f"model.weights={donor}", asked) == 2
    assert MISTAKES[mistake] in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
