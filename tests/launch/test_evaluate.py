"""tl evaluate: the right numbers, on the right images, of the right classes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix

from launch import evaluate
from tl.data.transforms import normalise, plain_view
from tl.models import saved
from tl.tracking.confusion_plot import plot_confusion

from .conftest import CLASSES, call_main


def run(*arguments) -> int:
    return evaluate.main([str(argument) for argument in arguments])


def report(folder):
    return json.loads((folder / "evaluation.json").read_text("utf-8"))


def truth(run_folder, data):
    """Labels and logits by plain torch, image for image."""
    model = saved.load(run_folder)
    view = plain_view(model.preprocessing)
    paths = sorted(data.rglob("*.png"))
    labels = [CLASSES.index(path.parent.name) for path in paths]
    with torch.no_grad():
        images = torch.stack([view(Image.open(path).convert("RGB")) for path in paths])
        return torch.tensor(labels), model.network(normalise(images, model.preprocessing))


def test_the_numbers_are_those_of_scikit_learn(run_folder, labelled, tmp_path, capfd):
    assert run(run_folder, labelled, "--output", tmp_path / "out") == 0
    got = report(tmp_path / "out")
    labels, logits = truth(run_folder, labelled)
    called = logits.argmax(1)
    assert got["classes"] == CLASSES
    assert got["confusion"] == confusion_matrix(labels, called, labels=[0, 1, 2]).tolist()
    theirs = classification_report(
        labels, called, labels=[0, 1, 2], target_names=CLASSES, output_dict=True, zero_division=0
    )
    assert len(got["per_class"]) == 3
    for row in got["per_class"]:
        other = theirs[row["class"]]
        assert row["precision"] == pytest.approx(other["precision"])
        assert row["recall"] == pytest.approx(other["recall"])
        assert row["f1"] == pytest.approx(other["f1-score"])
        assert row["images"] == other["support"]
    assert got["images"] == 16
    assert got["accuracy"] == (called == labels).double().mean().item()
    loss = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    assert got["loss"] == pytest.approx(loss, rel=1e-5)
    assert Image.open(tmp_path / "out" / "confusion_matrix.png").size[0] > 300
    shown = capfd.readouterr().out
    assert f"accuracy {got['accuracy']:.4f}" in shown
    assert all(name in shown for name in CLASSES)


def test_two_processes_say_the_same(gloo_workers, run_folder, labelled, tmp_path):
    assert run(run_folder, labelled, "--batch-size", 4, "--output", tmp_path / "one") == 0
    words = [run_folder, labelled, "--batch-size", 4, "--output", tmp_path / "two"]
    results = gloo_workers.run(2, call_main, "evaluate", *words)
    assert [code for code, _, _ in results] == [0, 0], results
    assert [out.count("accuracy") for _, out, _ in results] == [1, 0]
    one, two = report(tmp_path / "one"), report(tmp_path / "two")
    assert one.pop("loss") == pytest.approx(two.pop("loss"), rel=1e-6)
    assert one == two


def test_val_is_found_and_classes_go_by_name(run_folder, labelled, tmp_path, capfd):
    root = tmp_path / "root"
    (root / "train" / "something else").mkdir(parents=True)
    labelled.rename(root / "val")
    for image in (root / "val" / "ant").iterdir():  # the other two keep their labels
        image.unlink()
    (root / "val" / "ant").rmdir()
    (root / "val" / "bee" / "notes.txt").write_text("no image")
    assert run(run_folder, root, "--output", tmp_path / "out") == 0
    assert [row["images"] for row in report(tmp_path / "out")["per_class"]] == [0, 5, 5]
    assert "ignored 1 file" in capfd.readouterr().out


def test_a_path_may_hold_an_equals_sign(run_folder, labelled, tmp_path):
    place = labelled.rename(tmp_path / "lr=0.1")
    assert run(run_folder, place, "--output", tmp_path / "out") == 0
    assert report(tmp_path / "out")["images"] == 16


def test_the_run_s_own_validation_data(run_folder, labelled, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    (place / "model").symlink_to(run_folder / "model")
    # What a run asked of its machine is not asked of this one.
    config = f"num_processes: 8\ndata: {{root: {labelled}, val_fraction: 0.4, bad_images: skip}}\n"
    (place / "config.yaml").write_text(config)
    assert run(place) == 0
    assert report(place / "evaluation")["images"] == 6
    assert run(place, "data.max_val=3", "--output", tmp_path / "three") == 0
    assert report(tmp_path / "three")["images"] == 3
    (next(labelled.rglob("*.png"))).write_bytes(b"")
    assert run(place, "data.val_fraction=0.99") == 2  # the images are looked at anew
    assert run(place, "data.val_fraction=0.99", "--bad-images", "skip") == 0


def test_bad_images(run_folder, labelled, tmp_path, capfd):
    bad = labelled / "bee" / "1.png"
    bad.write_bytes(b"no image")
    output = tmp_path / "out"
    assert run(run_folder, labelled, "--output", output) == 2
    assert str(bad) in capfd.readouterr().err
    assert not output.exists()
    assert run(run_folder, labelled, "--output", output, "--bad-images", "skip") == 0
    shown = capfd.readouterr().out
    assert shown.count(str(bad)) == 1
    assert "15 images, 1 left out" in shown
    assert report(output)["images"] == 15
    assert list(report(output)["bad_images"]) == ["bee/1.png"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["RUN"], "no config.yaml"),
        (["missing", "data"], "missing does not exist"),
        (["empty", "data"], "holds no model"),
        (["RUN", "wrong"], "unknown class folder 'beee'"),
        (["RUN", "wrong"], "Did you mean 'bee'?"),
        (["RUN", "empty"], "has no folders"),
        (["RUN", "nowhere"], "is no folder"),
        (["RUN", "data", "wrong"], "one folder at a time"),
        (["RUN", "data.rot=data"], "Did you mean 'data.root'?"),
        (["RUN", "data.source=digits"], "unknown class '0'"),
        (["RUN", "data", "--output", "file"], "is a file"),
    ],
)
def test_mistakes(run_folder, labelled, tmp_path, monkeypatch, capfd, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong" / "beee").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert run(*[run_folder if word == "RUN" else word for word in arguments]) == 2
    assert says in capfd.readouterr().err


@pytest.mark.parametrize("num_classes", [1, 2, 10, 31, 200])
def test_a_picture_of_any_number_of_classes(num_classes, tmp_path):
    counts = np.random.default_rng(0).integers(0, 9, (num_classes, num_classes))
    counts[0] = 0  # a class without images
    names = [f"$x_{i}$ 甲\n" + "long " * (i % 9) for i in range(num_classes)]
    path = tmp_path / "matrix.png"
    plot_confusion(counts, names, path)
    picture = Image.open(path).convert("RGB")
    assert 300 < picture.width < 2500
    assert 300 < picture.height < 2500
    edge = np.concatenate([np.asarray(picture)[[0, -1]].reshape(-1, 3)])
    assert (edge == 255).all()  # nothing is cut off
    assert [p.name for p in tmp_path.iterdir()] == ["matrix.png"]


def test_code_that_a_folders_config_names_is_not_run(run_folder, labelled, tmp_path, capfd):
    """Loaded as a strategy, this one would run its argument as Python code."""
    sentinel, folder = tmp_path / "ran", tmp_path / "run"
    shutil.copytree(run_folder, folder)
    code = f"cProfile:run(__import__('os').mkdir('{sentinel}'))"
    (folder / "config.yaml").write_text(json.dumps({"strategy": code}))
    assert run(folder, labelled) == 0
    assert not sentinel.exists()
    (folder / "config.yaml").write_text(json.dumps({"data": {"source": "os:mkdir"}}))
    assert run(folder) == 2
    assert "names code as its data source" in capfd.readouterr().err
