"""tl interpolate: weights between a start and what was tuned, evaluated as tl evaluate does."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from launch import evaluate, interpolate, predict, train
from tl.engine.interpolate import mixed
from tl.models import saved, zoo
from tl.models.preprocessing import preprocessing_of, with_image_size

from .conftest import call_main, write_image

CLASSES = ["ant", "bee"]
PROBE = "{name: probe, train: head, epochs: 1}"
TUNE = "{name: tune, train: full, epochs: 2, optimizer: {lr: 0.05}}"


def run(*arguments) -> int:
    first, *others = map(str, arguments)
    return interpolate.main([first, "data.workers=0", "threads=1", *others])


def tensors(folder):
    return load_file(folder / "model.safetensors")


def report(folder):
    return json.loads((folder / "interpolation.json").read_text("utf-8"))


def model(folder, seed, classes=CLASSES, name="shufflenet_v2_x0_5", size=32):
    torch.manual_seed(seed)
    preprocessing = with_image_size(preprocessing_of(name, None), size)
    saved.save(zoo.build(name, len(classes), size), classes, preprocessing, folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for part in ("train", "val"):
        for i in range(8):
            write_image(root / part / CLASSES[i % 2] / f"{i}.png", i + 50 * (part == "val"))
    return root


def trained(folder, images, *more):
    keys = [f"data.root={images}", "data.image_size=32", "data.workers=0", "augment=none"]
    keys += ["model.name=shufflenet_v2_x0_5", "global_batch_size=4", "tracking.trackers=[jsonl]"]
    assert train.main([*keys, f"run_dir={folder}", *more]) == 0
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return model(tmp_path_factory.mktemp("pretrained"), 1, ["a", "b", "c"])


@pytest.fixture(scope="module")
def probed_and_tuned(tmp_path_factory, images, pretrained):
    folder = tmp_path_factory.mktemp("lp_ft") / "run"
    return trained(folder, images, f"model.weights={pretrained}", f"phases=[{PROBE}, {TUNE}]")


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5), st.floats(0, 1))
def test_weights_are_those_of_the_formula(values, alpha):
    """In float64, rounded once; whole numbers are the tuned ones, ends are the models' own bits."""
    a, b = torch.tensor(values), torch.tensor(values[::-1]) + 1
    one, two = {"w": a, "n": torch.tensor(3)}, {"w": b, "n": torch.tensor(8)}
    got = mixed(one, two, alpha)
    expected = (1 - alpha) * a.double() + alpha * b.double()
    assert got["w"].dtype == torch.float32
    torch.testing.assert_close(got["w"].double(), expected, rtol=1e-6, atol=1e-4)
    assert got["n"] == 8
    assert torch.equal(mixed(one, two, 0.0)["w"], a)
    assert torch.equal(mixed(one, two, 1.0)["w"], b)


def test_each_row_is_what_evaluate_says_of_these_weights(probed_and_tuned, images, tmp_path, capfd):
    """BatchNorm's statistics go between as well. The best is by accuracy, then by loss."""
    folder, last = probed_and_tuned, probed_and_tuned / "last"
    alphas = "0,0.3,1"
    assert run(last, "--alphas", alphas, "--save", tmp_path / "best") == 0
    shown = capfd.readouterr().out
    assert f"from {folder / 'start'} (0) to {last} (1)" in shown
    told = report(tmp_path / "best")
    begin, end = tensors(folder / "start"), tensors(last)
    assert any("running_var" in name for name in end)
    assert [row["alpha"] for row in told["rows"]] == [0, 0.3, 1]
    for row in told["rows"]:
        between = tmp_path / str(row["alpha"])
        shutil.copytree(last, between)
        state = {
            n: ((1 - row["alpha"]) * begin[n].double() + row["alpha"] * t.double()).to(t.dtype)
            if t.is_floating_point()
            else t
            for n, t in end.items()
        }
        saved.save(*_parts(between), between, state)
        assert evaluate.main([str(between), str(images / "val")]) == 0
        theirs = json.loads((between / "evaluation" / "evaluation.json").read_text())
        assert row["accuracy"] == theirs["accuracy"]
        assert row["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    best = max(told["rows"], key=lambda row: (row["accuracy"], -row["loss"]))
    assert told["best"] == best
    chosen, expected = tensors(tmp_path / "best"), tensors(tmp_path / str(best["alpha"]))
    for name in expected:
        torch.testing.assert_close(chosen[name], expected[name], rtol=1e-6, atol=1e-8)
    assert predict.main([str(tmp_path / "best"), str(images / "val")]) == 0
    assert capfd.readouterr().out.count("\n") > 8


def _parts(folder):
    loaded = saved.load(folder)
    return loaded.network, loaded.classes, loaded.preprocessing


def test_a_run_that_probes_first_keeps_the_end_of_that_as_its_start(probed_and_tuned, pretrained):
    """The pretrained network, bit for bit, under a head that has been trained."""
    begin, weights = tensors(probed_and_tuned / "start"), tensors(pretrained)
    assert all(torch.equal(begin[n], t) for n, t in weights.items() if not n.startswith("fc."))
    saved.load(probed_and_tuned / "start")


def test_a_run_of_one_phase_starts_from_its_weights_under_the_tuned_head(
    images, pretrained, tmp_path, capfd
):
    folder = trained(
        tmp_path / "run", images, f"model.weights={pretrained}", f"phases=[{TUNE}]", "epochs=1"
    )
    assert not (folder / "start").exists()
    assert run(folder, "--alphas", "0", "--save", tmp_path / "zero") == 0
    assert "with the tuned head (0)" in capfd.readouterr().out
    zero, weights, tuned = (tensors(f) for f in (tmp_path / "zero", pretrained, folder / "model"))
    for name, tensor in zero.items():
        theirs = weights if "fc." not in name and tensor.is_floating_point() else tuned
        assert torch.equal(tensor, theirs[name]), name


def test_a_head_only_run_or_one_of_adapters_leaves_no_start(images, pretrained, tmp_path):
    for phases in (PROBE, f"{{name: adapt, train: 'lora(2)', epochs: 1}}, {TUNE}"):
        folder = trained(
            tmp_path / str(len(phases)), images, f"model.weights={pretrained}", f"phases=[{phases}]"
        )
        assert not (folder / "start").exists()


@pytest.mark.slow
def test_two_models_and_the_mean_of_several(images, tmp_path, capfd):
    a, b, c = (model(tmp_path / name, seed) for seed, name in enumerate("abc"))
    data = [f"data.root={images}"]
    assert run(a, *data, "--with", b, "--alphas", "0.5", "--save", tmp_path / "two") == 0
    assert run(a, *data, "--with", b, c) == 0
    assert "0.3333" in capfd.readouterr().out  # the soup is among the rows
    third = 1 / 3
    assert run(a, *data, "--with", b, c, "--alphas", third, "--save", tmp_path / "soup") == 0
    states = [tensors(folder) for folder in (a, b, c)]
    for name, tensor in tensors(tmp_path / "soup").items():
        if tensor.is_floating_point():
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
            two = (states[0][name].double() + states[1][name].double()) / 2
            half = tensors(tmp_path / "two")[name].double()
            torch.testing.assert_close(half, two, rtol=1e-6, atol=1e-7)


def test_two_processes_say_the_same(gloo_workers, probed_and_tuned, tmp_path):
    last = probed_and_tuned / "last"
    assert run(last, "--alphas", "0,0.5", "--save", tmp_path / "one") == 0
    words = [last, "data.workers=0", "--alphas", "0,0.5", "--save", tmp_path / "two"]
    results = gloo_workers.run(2, call_main, "interpolate", *words)
    assert [code for code, _, _ in results] == [0, 0], results
    # The table's head, and the last line.
    assert [out.count("alpha ") for _, out, _ in results] == [2, 0]
    one, two = (report(tmp_path / name)["rows"] for name in ("one", "two"))
    for mine, theirs in zip(one, two, strict=True):
        assert mine["accuracy"] == theirs["accuracy"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"classes": ["bee", "ant"]}, "classes: ['bee', 'ant'] and ['ant', 'bee']"),
        ({"classes": ["ant", "bee", "cat"]}, "'num_classes': 3"),
        ({"name": "shufflenet_v2_x1_0"}, "architecture: 'shufflenet_v2_x1_0' and 'shufflenet_v2"),
        ({"size": 64}, "preprocessing:"),
    ],
)
def test_unlike_models_are_refused_with_what_differs(images, tmp_path, capfd, other, says):
    a, b = model(tmp_path / "a", 0), model(tmp_path / "b", 1, **other)
    assert run(a, f"data.root={images}", "--with", b, "--save", tmp_path / "out") == 2
    said = capfd.readouterr().err
    assert f"{b} and {a} are unlike" in said
    assert says in said
    assert "Give two models of one architecture" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["A"], "there is no config.yaml"),
        (["A", "images"], "is of no run that is there: give a model to start from, --with DIR"),
        (["random"], "began with random weights: give a model to start from, --with DIR"),
        (["missing"], "missing does not exist"),
        (["A", "images", "--with", "nowhere"], "holds no model"),
        (["A", "images", "--with", "A"], "are the same weights"),
        (["A", "images", "--with", "B", "--save", "B"], "holds a model already"),
        (["A", "images", "--with", "B", "--save", "file"], "is a file"),
    ],
)
def test_mistakes(images, tmp_path, monkeypatch, capfd, arguments, says):
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "A", 0)
    model(tmp_path / "B", 1)
    model(tmp_path / "random" / "model", 1)
    (tmp_path / "random" / "config.yaml").write_text(
        f"model: {{name: shufflenet_v2_x0_5, weights: null}}\ndata: {{root: {images}}}\n"
    )
    (tmp_path / "images").symlink_to(images / "val")
    (tmp_path / "file").touch()
    before = (tmp_path / "B" / "model.safetensors").read_bytes()
    assert run(*arguments) == 2
    assert says in capfd.readouterr().err
    assert (tmp_path / "B" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("alphas", ["", "x", "0,1.1", "-0.1", "nan", "0,,1"])
def test_alphas_that_are_none_are_refused(alphas, capfd):
    with pytest.raises(SystemExit) as ended:
        run("somewhere", f"--alphas={alphas}")
    assert ended.value.code == 2
    assert "is no list of numbers from 0 to 1" in capfd.readouterr().err
