"""tl predict: features, views, thresholds, overlays, and rows for what cannot be read."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tl.data.images import read_rgb
from tl.data.several_views import SCALE
from tl.data.transforms import augmented_view, normalise, plain_view, seeded
from tl.engine.cam_files import overlay
from tl.models import saved
from tl.models.grad_cam import grad_cam

from .conftest import (
    CLASSES,
    TOLERANCE,
    call_main,
    call_main_with_one_thread,
    read_csv,
    run_predict,
    write_image,
)


@pytest.fixture
def images(tmp_path):
    return [write_image(tmp_path / "images" / f"{i}.png", i) for i in range(7)]


def inputs_of(model, views):
    """What the network is given: float64 (N, 3, S, S)."""
    return normalise(torch.stack(views), model.preprocessing).double()


@torch.no_grad()
def test_features_are_what_goes_into_the_head_and_rows_say_whose(run_folder, images, tmp_path):
    images[3].write_bytes(b"no image")
    output, options = tmp_path / "p.csv", ["--bad-images", "skip", "--batch-size", "2"]
    for name in ("f.npy", "f.safetensors"):
        words = [run_folder, images[0].parent, "--output", output, *options]
        assert run_predict(*words, "--features", tmp_path / name) == 0
    features = np.load(tmp_path / "f.npy", mmap_mode="r", allow_pickle=False)
    model = saved.load(run_folder)
    network = model.network.double()
    assert (features.dtype, len(features)) == (np.float32, 7)
    rows = read_csv(output)
    assert [int(row["row"]) for row in rows] == [0, 1, 2, 4, 5, 6]
    assert np.isnan(features[3]).all()
    view = plain_view(model.preprocessing)
    for row in rows:
        x = inputs_of(model, [view(read_rgb(row["path"]))])
        expected = network.features(x, len(network.stages) - 1)[0]
        # float32 against float64, of values of about 1
        np.testing.assert_allclose(features[int(row["row"])], expected, rtol=1e-4, atol=1e-5)
    other = load_file(tmp_path / "f.safetensors")["features"]
    np.testing.assert_array_equal(other, features)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "f.npy", "f.safetensors", "images", "p.csv",
    ]  # fmt: skip


@torch.no_grad()
def test_features_of_another_stage(run_folder, images, tmp_path):
    words = [run_folder, *images[:3], "--output", tmp_path / "p.jsonl"]
    more = ["--features", tmp_path / "f.npy", "--features-from"]
    assert run_predict(*words, *more, "stage2") == 0
    model = saved.load(run_folder)
    view = plain_view(model.preprocessing)
    x = inputs_of(model, [view(read_rgb(path)) for path in images[:3]])
    expected = model.network.double().features(x, 2).mean((2, 3))
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), expected, rtol=1e-4, atol=1e-5)
    assert run_predict(*words, *more, "fc") == 2


@torch.no_grad()
@pytest.mark.parametrize("tta", ["flip", "3"])
def test_views_are_averaged_as_a_plain_loop_does(run_folder, images, tmp_path, tta):
    output = tmp_path / "p.csv"
    assert (
        run_predict(run_folder, *images, "--output", output, "--tta", tta, "--batch-size", "3") == 0
    )
    model = saved.load(run_folder)
    plain = plain_view(model.preprocessing)
    crop = augmented_view(model.preprocessing, "standard", SCALE)
    for row in read_csv(output):
        image = read_rgb(row["path"])
        seen = [plain(image)]
        seen += [seen[0].flip(-1)] if tta == "flip" else [seeded(crop, image, v) for v in (1, 2)]
        p = model.network.double()(inputs_of(model, seen)).softmax(1).mean(0)
        found = [float(row[f"p({name})"]) for name in CLASSES]
        assert found == pytest.approx(p.tolist(), abs=TOLERANCE)
        assert row["class"] == CLASSES[p.argmax()]


def test_thresholds_and_both_kinds_of_probabilities(run_folder, images, tmp_path):
    words = [run_folder, *images, "--output", tmp_path / "p.csv"]
    assert run_predict(*words) == 0
    sure = sorted({float(row["confidence"]) for row in read_csv(tmp_path / "p.csv")})
    threshold = sure[len(sure) // 2]
    assert run_predict(*words, "--threshold", threshold, "--top", 2, "--probabilities") == 0
    rows = read_csv(tmp_path / "p.csv")
    assert {row["class"] == "" for row in rows} == {True, False}
    for row in rows:
        assert (row["class"] == "") == (float(row["confidence"]) < threshold)
        assert row["p1"] == row[f"p({row['class1']})"] == row["confidence"]


def test_bad_images_may_have_a_row(run_folder, images, tmp_path, capfd):
    images[2].write_bytes(b"no image")
    words = [run_folder, images[0].parent, "--bad-images", "row", "--output", tmp_path / "p.csv"]
    assert run_predict(*words) == 0
    rows = read_csv(tmp_path / "p.csv")
    assert [row["path"] for row in rows] == [str(path) for path in images]
    assert [bool(row["error"]) for row in rows] == [i == 2 for i in range(7)]
    assert str(images[2]) not in rows[2]["error"]
    assert "6 predictions" in (said := capfd.readouterr().err)
    assert "1 with an error" in said


def test_overlays_show_grad_cam_and_stay_in_their_folder(run_folder, tmp_path):
    names = ["a.png", "../up/b.png", "x" * 200 + ".png", "line\nfeed, \udcff.png", "sub/a.png"]
    paths = [write_image(tmp_path / "images" / name, i) for i, name in enumerate(names)]
    words = [run_folder, *map(str, paths), "--output", tmp_path / "p.csv"]
    assert run_predict(*words, "--cam", tmp_path / "cams", "--cam-class", "bee") == 0
    rows = read_csv(tmp_path / "p.csv")
    files = sorted(path.name for path in (tmp_path / "cams").iterdir())
    assert sorted(row["cam"] for row in rows) == files
    assert len(files) == len(paths)
    assert all(name.isascii() and name.isprintable() and "/" not in name for name in files)
    model = saved.load(run_folder)
    for row, path in zip(rows, paths, strict=True):
        view = plain_view(model.preprocessing)(read_rgb(path))
        x = normalise(view[None], model.preprocessing)
        [heat] = grad_cam(model.network, x, torch.tensor([CLASSES.index("bee")]))
        found = np.asarray(Image.open(tmp_path / "cams" / row["cam"])).astype(float)
        expected = np.asarray(overlay(view, heat)).astype(float)
        assert np.abs(found - expected).mean() < 5  # JPEG's, of 255; other images are 50 away


def test_an_overlay_is_the_image_where_it_is_cold_and_red_where_it_is_hot():
    view = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    pixels = np.asarray(overlay(view, torch.tensor([[0.0, 1.0], [0.5, 0.0]])))
    assert pixels[0, 0].tolist() == pixels[1, 1].tolist() == [100, 100, 100]
    # The ends of matplotlib's turbo: (0.48, 0.016, 0.011) is the hottest.
    assert pixels[0, 1].tolist() == pytest.approx([40 + 0.6 * 255 * c for c in HOTTEST], abs=1)
    grey = overlay(view[:1], torch.zeros(2, 2))
    assert (grey.mode, np.asarray(grey).tolist()) == ("RGB", [[[100] * 3] * 2] * 2)


HOTTEST = (0.4796, 0.01583, 0.01055)


def test_lists_from_standard_input_and_csv_are_predicted(run_folder, images, tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("path\nimages/5.png\n")
    given = "\0".join(map(str, images[2:4])).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    words = [run_folder, "-", "-0", tmp_path / "images" / "[01].png", "--csv"]
    assert run_predict(*words, tmp_path / "list.csv", "--output", tmp_path / "p.jsonl") == 0
    found = [json.loads(line)["path"] for line in (tmp_path / "p.jsonl").open()]
    assert found == [str(images[i]) for i in (2, 3, 0, 1, 5)]


def test_two_processes_write_the_same_features_and_overlays(
    gloo_workers, run_folder, images, tmp_path
):
    images[4].write_bytes(b"no image")
    made = []
    for world_size in (1, 2):
        place = tmp_path / str(world_size)
        place.mkdir()
        words = ["predict", run_folder, images[0].parent, "--output", place / "p.csv"]
        words += ["--features", place / "f.npy", "--tta", "2", "--cam", place / "cams"]
        words += ["--batch-size", 2, "--bad-images", "row", "--workers", 1]
        for code, out, error in gloo_workers.run(world_size, call_main_with_one_thread, *words):
            assert (code, out) == (0, ""), error
        made.append({p.name: p.read_bytes() for p in place.rglob("*") if p.is_file()})
    assert made[0] == made[1]
    assert len(made[0]) == 2 + 6


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_either_process_is_said_once_and_ends_both(
    gloo_workers, run_folder, images, tmp_path, failing
):
    images[2 * failing].write_bytes(b"no image")
    words = ["predict", run_folder, images[0].parent, "--output", tmp_path / "p.csv"]
    results = gloo_workers.run(2, call_main, *words, "--batch-size", 2, "--workers", 0)
    codes = [code for code, _, _ in results]
    assert codes[failing] == 2
    if failing == 1:
        assert codes[0] == 1, "it waits for the pieces of the other, which do not come"
    said = "".join(error for _, _, error in results)
    assert said.count("cannot decode") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--features", "f.npy"], "--features needs --output"),
        (["--output", "p.csv", "--features", "f.txt"], "neither .npy nor .safetensors"),
        (["--output", "p.csv", "--features", "p.csv"], "neither .npy"),
        (["--features-from", "stem"], "give that too"),
        (["--output", "p.csv", "--features", "f.npy", "--features-from", "stme"], "'stem'"),
        (["--cam", "images/0.png"], "is a file"),
        (["--cam-class", "bee"], "give that too"),
        (["--cam", "cams", "--cam-class", "bea"], "Did you mean 'bee'"),
        (["--overwrite"], "there is none"),
        (["--csv", "no.csv"], "cannot read --csv no.csv"),
    ],
)
def test_mistakes(run_folder, images, tmp_path, monkeypatch, capfd, words, says):
    monkeypatch.chdir(tmp_path)
    assert run_predict(run_folder, "images", *words) == 2
    assert says in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


@pytest.mark.parametrize("words", [["--tta", "1"], ["--tta", "twice"], ["--threshold", "1.1"]])
def test_values_that_are_none(words, capsys):
    with pytest.raises(SystemExit) as caught:
        run_predict("RUN", "x", *words)
    assert caught.value.code == 2
