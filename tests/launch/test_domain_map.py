"""tl map: the numbers are those of features computed another way; mistakes are answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_workers import GlooWorkers
from PIL import Image
from safetensors.torch import save_file

from launch.domain_map import main
from tl.arguments import load
from tl.data.sources import open_source
from tl.data.split import AnyImages
from tl.data.transforms import normalise, plain_view
from tl.domain_gap import domain_accuracy, linear_classifier, principal_plane
from tl.engine.run import run as train
from tl.models import saved, zoo
from tl.models.preprocessing import preprocessing_of, with_image_size
from tl.tracking.adaptation_plot import plot_adaptation

from .conftest import call_main

CLASSES = ["ant", "bee", "Käfer, $groß$"]
IMAGES = {"photo": 25, "sketch": 12}
"""of each class"""
FILES = {"domain_map.json", "domain_map.png", "adaptation.png"}


def write_images(root: Path) -> None:
    """A colour for each class, and another brightness for the domain."""
    draw = np.random.default_rng(0)
    for domain, count in IMAGES.items():
        for label, name in enumerate(CLASSES):
            (root / domain / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 90, (4, 4, 3)) + (110 if domain == "photo" else 0)
                pixels[..., label] += 50
                image = Image.fromarray(pixels.astype(np.uint8)).resize((40, 36))
                image.save(root / domain / name / f"{i}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has adapted, below it its data and the weights it began with."""
    folder = tmp_path_factory.mktemp("adapted")
    write_images(folder / "data")
    torch.manual_seed(3)
    weights = zoo.build("squeezenet1_1", 5, 32).model.state_dict()
    save_file(weights, folder / "weights.safetensors")
    words = [
        f"data.root={folder / 'data'}",
        "data.source_domains=[photo]",
        "data.target_domain=sketch",
        "data.image_size=32",
        "data.workers=0",
        "data.val_fraction=0.4",
        "model.name=squeezenet1_1",
        f"model.weights={folder / 'weights.safetensors'}",
        "model.bottleneck=8",
        "strategy=last_stages(3)",
        "objective=dann",
        "augment=none",
        "steps=2",
        "global_batch_size=8",
        "optimizer.lr=0.01",
        "tracking.log_every=1",
        "tracking.trackers=[jsonl]",
        "evaluate_every_steps=1",
        f"run_dir={folder / 'run'}",
    ]
    train(load(None, words, environ={}))
    return folder / "run"


def mapped(run: Path, output: Path, *words: str) -> dict[str, Any]:
    assert main([str(run), "--output", str(output), *words]) == 0
    assert {path.name for path in output.iterdir()} == FILES
    for name in FILES - {"domain_map.json"}:
        with Image.open(output / name) as picture:
            picture.verify()
            assert min(picture.size) > 300
    return json.loads((output / "domain_map.json").read_text())


@pytest.fixture(scope="module")
def found(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return mapped(run, tmp_path_factory.mktemp("map"))


@torch.inference_mode()
def features(network: Any, images: AnyImages, upto: int) -> np.ndarray:
    preprocessing = with_image_size(preprocessing_of("squeezenet1_1", None), 32)
    view = plain_view(preprocessing)
    pixels = torch.stack([view(images.read(i)) for i in range(len(images))])
    x = network.features(normalise(pixels, preprocessing), upto)
    return (x.mean((2, 3)) if x.dim() == 4 else x).numpy()


def test_numbers_are_those_of_features_that_are_computed_here(
    run: Path, found: dict[str, Any]
) -> None:
    """Before behind the last stage that was not random, after behind what the head goes by."""
    config = load(run / "config.yaml", [], environ={}).config
    source = open_source(config.data, config.seed)
    assert source.target is not None
    target = source.target.test
    before = zoo.build("squeezenet1_1", 5, 32).eval()
    before.model.load_state_dict(_read(run.parent / "weights.safetensors"))
    after = saved.load(run).network
    assert [found[key]["images"] for key in ("source", "target")] == [30, 36]
    assert [found[key]["stage"] for key in ("before", "after")] == ["fire9", "bottleneck"]
    for name, network in (("before", before), ("after", after)):
        upto = len(network.stages) - 1
        a, b = features(network, source.val, upto), features(network, target, upto)
        row = found[name]
        assert row["width"] == a.shape[1] == {"before": 512, "after": 8}[name]
        accuracy = domain_accuracy(a, b, config.seed)
        # Batches of another size round otherwise; one image on the border may fall either way.
        assert row["domain_accuracy"] == pytest.approx(accuracy, abs=0.5 / 30 + 1e-9)
        assert row["proxy_a_distance"] == pytest.approx(
            max(0.0, 4 * row["domain_accuracy"] - 2), abs=1e-12
        )
        _, shares = principal_plane(np.concatenate([a, b]))
        assert row["pca_explained_variance"] == pytest.approx(shares, rel=1e-4)
    # Who began with a new head is asked by a linear classifier of source images.
    upto = len(before.stages) - 1
    classifier = linear_classifier(features(before, source.train, upto), source.train.labels)
    assert len(source.train) == 45
    assert "45 source images" in found["before_classifies_by"]
    right = classifier.predict(features(before, target, upto)) == target.labels
    accuracy = found["target_accuracy"]["before"]
    assert accuracy == pytest.approx(right.mean(), abs=1 / 36 + 1e-9)


def test_the_table_has_both_stages_of_both_networks(found: dict[str, Any]) -> None:
    rows = [(row["network"], row["stage"], row["width"]) for row in found["all"]]
    stages = [("fire9", 512), ("bottleneck", 8)]
    assert rows == [(name, *stage) for name in ("before", "after") for stage in stages]


def test_accuracy_on_the_target_is_the_one_that_the_run_measured(
    run: Path, found: dict[str, Any]
) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert found["target_accuracy"]["after"] == pytest.approx(summary["oracle/accuracy"])
    rows = found["per_class"]
    assert [(row["class"], row["images"]) for row in rows] == [
        (name, 12) for name in sorted(CLASSES)
    ]
    for key, accuracy in found["target_accuracy"].items():
        assert np.mean([row[key] for row in rows]) == pytest.approx(accuracy)


@pytest.mark.slow
def test_two_processes_say_the_same(
    run: Path, found: dict[str, Any], gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    words = [run, "--output", tmp_path, "--batch-size", "16"]
    results = gloo_workers.run(2, call_main, "domain_map", *words)
    assert [code for code, _, _ in results] == [0, 0], results
    assert [out.count("written:") for _, out, _ in results] == [1, 0]
    two = json.loads((tmp_path / "domain_map.json").read_text())
    assert [row["stage"] for row in two["all"]] == [row["stage"] for row in found["all"]]
    for mine, theirs in zip(two["all"], found["all"], strict=True):
        # As above: one image on the border.
        assert mine["domain_accuracy"] == pytest.approx(theirs["domain_accuracy"], abs=0.02)
    for key in ("before", "after"):
        shares = found[key]["pca_explained_variance"]
        assert two[key]["pca_explained_variance"] == pytest.approx(shares, rel=1e-4)


def test_a_target_without_labels_has_a_map_and_no_accuracies(run: Path, tmp_path: Path) -> None:
    found = mapped(run, tmp_path, "data.target_labels=none", "--images", "20")
    assert [found[key]["images"] for key in ("source", "target")] == [20, 20]
    assert not found.keys() & {"target_accuracy", "per_class", "before_classifies_by"}


def test_a_head_that_was_there_before_is_asked_itself(run: Path, tmp_path: Path) -> None:
    """A run that begins with this run's model begins with its head, and its bottleneck."""
    found = mapped(run, tmp_path, f"model.weights={run}")
    assert found["before_classifies_by"] == "its own head"
    assert found["target_accuracy"]["before"] == found["target_accuracy"]["after"]
    assert found["before"] == {**found["after"], "network": "before"}


def test_what_is_there_alone_is_drawn(tmp_path: Path) -> None:
    """A record without a discriminator, without anything, with values that are no numbers."""
    lines = [{"step": 1, "target/im": 0.3, "val/accuracy": None}, {"step": 2, "target/im": "0.2"}]
    sizes = []
    for i, given in enumerate([lines, []]):
        plot_adaptation(given, None, tmp_path / f"{i}.png")
        with Image.open(tmp_path / f"{i}.png") as picture:
            sizes.append(picture.size)
    assert sizes[0][1] > 300 > sizes[1][1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["NOWHERE"], "does not exist"),
        (["RUN/model/config.json"], "is a file"),
        (["MODEL"], "is of no run that is there"),
        (["RUN", "DATA/photo"], "give data.target_root="),
        (["RUN", "data.target_domain=null", "data.source_domains=null"], "data.target_root=FOLDER"),
        (["RUN", "data.root=null", "data.source_domains=null", "data.target_domain=null",
          "data.target_root=DATA/sketch"], "data.source_root=FOLDER"),
        (["RUN", "data.max_val=9"], "has 9 images to look at; it takes 10"),
        (["RUN", "data.classes=[ant, bee]"], "other classes than the model"),
        (["RUN", "model.weights=DATA/gone.pth"], "gone.pth"),
        (["RUN", "--output", "RUN/config.yaml"], "is a file"),
        (["RUN", "--images", "3"], "no whole number of 10 or more"),
    ],
)  # fmt: skip
def test_mistakes(
    words: list[str],
    says: str,
    run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "copy"
    model.mkdir()
    for file in (run / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    places = {"NOWHERE": tmp_path / "nowhere", "RUN": run, "MODEL": model}
    places["DATA"] = run.parent / "data"
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    if words[0] == str(model):  # which does not know its data
        words += ["data.source=digits"]
    before = sorted(run.iterdir())
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    said = capfd.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert sorted(run.iterdir()) == before


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
