"""SHOT from the command line: from a run's model and a target alone, or exit 2 with the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launch import evaluate, predict, train

from .conftest import CLASSES, write_image

SMALL = [
    "model.name=shufflenet_v2_x0_5",
    "data.image_size=32",
    "data.workers=0",
    "threads=1",
    "global_batch_size=8",
    "epochs=1",
    "tracking.trackers=[jsonl]",
]
SHOT = ["objective=shot", "strategy=freeze_head"]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Images of no class, in folders that say nothing."""
    for i in range(9):
        write_image(tmp_path / "target" / f"day {i % 2}" / f"{i}.png", i)
    return tmp_path / "target"


def test_it_adapts_and_predicts(run_folder, target, tmp_path, capfd):
    adapted = tmp_path / "adapted"
    words = [f"run_dir={adapted}", f"model.weights={run_folder}"]
    about = [f"data.target_root={target}", "data.target_labels=none"]
    assert train.main([*SMALL, *SHOT, *words, *about]) == 0
    summary = json.loads((adapted / "summary.json").read_text())
    assert summary["best_metric"] == "target/im"
    assert not any("val/" in key or "oracle" in key for key in summary)
    assert train.main([*SMALL, *SHOT, *words, *about, "--resume", "auto"]) == 0
    assert "the run is done already" in capfd.readouterr().out
    assert predict.main([str(adapted), str(target)]) == 0
    assert CLASSES[0] in capfd.readouterr().out
    assert evaluate.main([str(adapted)]) == 2
    assert "nothing labelled" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.target_root=TARGET"], "give model.weights=RUN, the folder of the run that"),
        (
            ["data.target_root=TARGET", "model.weights=null"],
            "give model.weights=RUN, the folder of the run that trained it",
        ),
        (
            ["data.source_root=LABELLED", "data.target_root=TARGET", "model.weights=null"],
            "is new. Give model.weights=RUN, the folder of the run that trained it",
        ),
        (["data.target_root=TARGET", "model.weights=RUN", "model.head=new"], "fc.bias) is new"),
        (["data.source_root=LABELLED", "model.weights=RUN"], "Give data.target_root=FOLDER"),
        (["data.target_root=TARGET", "model.weights=RUN", "strategy=full"], "train=freeze_head"),
        (
            ["data.target_root=TARGET", "model.weights=RUN", "label_smoothing=0.1"],
            "that trains on the source, and here label_smoothing=0",
        ),
        (["data.target_root=TARGET", "model.weights=RUN", "mixup=0.2"], "give mixup=0"),
        (
            ["data.target_root=TARGET", "model.weights=RUN", "objective=dann"],
            "Give data.source_root, or an objective that goes without: shot",
        ),
        (
            ["data.target_root=TARGET", "model.weights=RUN", "best.metric=val/accuracy"],
            "no images that it could be measured on",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(
    run_folder, target, labelled, tmp_path, capfd, words, says
):
    places = {"RUN": run_folder, "TARGET": target, "LABELLED": labelled}
    for name, place in places.items():
        words = [word.replace(f"={name}", f"={place}") for word in words]
    given = [*SMALL, *SHOT, "data.target_labels=none", f"run_dir={tmp_path / 'run'}", *words]
    assert train.main(given) == 2
    errors = capfd.readouterr().err
    assert says in " ".join(errors.split()), errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_model_is_named(run_folder, target, tmp_path, capfd):
    place = tmp_path / "trained"
    shutil.copytree(run_folder / "model", place / "model")
    (place / "model" / "model.safetensors").unlink()
    words = [f"model.weights={place}", f"data.target_root={target}", "data.target_labels=none"]
    assert train.main([*SMALL, *SHOT, *words, f"run_dir={tmp_path / 'run'}"]) == 2
    assert f"{place} is no folder of a run with a model in it" in capfd.readouterr().err
