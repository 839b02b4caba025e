"""A model is used with images as it was trained with them, whatever its folder comes with."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from launch import evaluate, predict
from tl.config import DataConfig
from tl.data.images import read_rgb, read_shrunk
from tl.data.transforms import normalise, plain_view
from tl.models import saved

from .conftest import CLASSES, TOLERANCE, picture, write_image


def run(*arguments) -> int:
    return predict.main([str(argument) for argument in arguments])


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def images(tmp_path):
    return [write_image(tmp_path / "images" / f"{i}.png", i) for i in range(2)]


def test_images_are_seen_as_in_training_and_evaluation(run_folder, tmp_path):
    """What lies behind transparent pixels, and which files of a folder count."""
    colour, data = [0, 255, 0], tmp_path / "data"
    for i in range(8):
        path = data / CLASSES[i % 2] / f"{i}.{'png' if i % 4 < 2 else 'picture'}"
        rgba = picture(i).convert("RGBA")
        rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
        path.parent.mkdir(parents=True, exist_ok=True)
        rgba.save(path, "PNG")
        (path.with_suffix(".jpg")).write_bytes(b"no image, and it does not count")
    run_keys = DataConfig(background=colour, extensions=["png", ".picture"])
    model = saved.load(run_folder)
    parts = (model.network, model.classes, model.preprocessing)
    saved.save(*parts, tmp_path / "model", data=run_keys)

    assert run(tmp_path / "model", data, "--output", tmp_path / "p.csv") == 0
    rows = read(tmp_path / "p.csv")
    assert len(rows) == 8
    view = plain_view(model.preprocessing)
    views = []
    for row in rows:
        rgba = Image.open(row["path"])
        canvas = Image.new("RGB", rgba.size, tuple(colour))
        canvas.paste(rgba, mask=rgba)
        views.append(normalise(view(canvas), model.preprocessing))
    with torch.no_grad():
        probabilities = model.network.double()(torch.stack(views).double()).softmax(1)
    for row, p in zip(rows, probabilities, strict=True):
        columns = [float(row[f"p({name})"]) for name in CLASSES]
        assert columns == pytest.approx(p.tolist(), abs=TOLERANCE)

    # A model that came without its run's config is evaluated on the same pixels.
    out = tmp_path / "out"
    assert evaluate.main([str(tmp_path / "model"), str(data), "--output", str(out)]) == 0
    evaluated = json.loads((out / "evaluation.json").read_text())
    labels = torch.tensor([CLASSES.index(Path(row["path"]).parent.name) for row in rows])
    assert evaluated["accuracy"] == (probabilities.argmax(1) == labels).double().mean()
    loss = -probabilities[torch.arange(8), labels].log().mean()
    assert evaluated["loss"] == pytest.approx(loss.item(), rel=1e-4)  # of sharp probabilities


@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_a_large_jpeg_is_decoded_as_in_training(run_folder, tmp_path, decode):
    path = tmp_path / "large.jpg"
    picture(3).resize((700, 500)).save(path)
    model = saved.load(run_folder)
    parts = (model.network, model.classes, model.preprocessing)
    saved.save(*parts, tmp_path / "model", data=DataConfig(decode=decode))
    assert run(tmp_path / "model", path, "--output", tmp_path / "p.csv") == 0
    view = plain_view(model.preprocessing)
    fast, exact = view(read_shrunk(path, view.least)), view(read_rgb(path))
    assert not torch.equal(fast, exact)
    x = normalise(fast if decode == "fast" else exact, model.preprocessing)
    with torch.no_grad():
        probabilities = model.network.double()(x[None].double()).softmax(1)[0]
    (row,) = read(tmp_path / "p.csv")
    columns = [float(row[f"p({name})"]) for name in CLASSES]
    assert columns == pytest.approx(probabilities.tolist(), abs=TOLERANCE)


def test_a_model_folder_of_an_older_version_gets_the_defaults(run_folder, images, tmp_path):
    shutil.copytree(run_folder / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    assert config.pop("data").keys() == {"background", "decode", "extensions"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    for name, folder in (("new", run_folder), ("old", tmp_path / "model")):
        assert run(folder, images[0].parent, "--output", tmp_path / f"{name}.csv") == 0
    assert (tmp_path / "old.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()


@pytest.mark.parametrize("wrong", [[], {"background": [1, 2]}, {"extensions": "png"}])
def test_data_keys_of_a_model_that_are_none_are_named(run_folder, images, tmp_path, capfd, wrong):
    shutil.copytree(run_folder / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "data": wrong}))
    assert run(tmp_path / "model", images[0]) == 2
    assert "data keys that are none" in capfd.readouterr().err
