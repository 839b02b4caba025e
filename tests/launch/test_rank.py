"""tl rank: the right scores, in order, on any number of processes; mistakes are answered."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers
from safetensors.torch import save_file

from launch.rank import main
from tl.arguments import load
from tl.data.sources import open_source
from tl.data.transforms import normalise, plain_view
from tl.engine.rank import rank
from tl.models import zoo
from tl.models.preprocessing import preprocessing_of, with_image_size
from tl.transferability import knn_accuracy, logme

ROOT = Path(__file__).parents[2]
DIGITS = ["data.source=digits", "data.image_size=32", "data.max_train=60", "data.workers=0"]
# Of float32 features; a process has fewer threads where there are more of them.
TOLERANCE = 1e-4


def ranked(*overrides: str, **options: Any) -> dict[str, Any]:
    return rank(load(None, [*DIGITS, *overrides], environ={}), **options)


def of_workers(overrides: list[str], options: dict[str, Any]) -> dict[str, Any]:
    return ranked(*overrides, **options)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with weights of a SqueezeNet."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file(zoo.build("squeezenet1_1", 5, 32).model.state_dict(), path)
    return str(path)


def test_scores_are_those_of_features_computed_image_by_image(weights: str) -> None:
    given = {"models": [f"squeezenet1_1={weights}"], "cuts": "stem,fire9", "neighbours": 3}
    result = ranked(**given, batch_size=7)
    network = zoo.build("squeezenet1_1", 10, 32).eval()
    state = {n: t for n, t in _read(weights).items() if not n.startswith("classifier")}
    network.model.load_state_dict(state, strict=False)
    preprocessing = with_image_size(preprocessing_of("squeezenet1_1", None), 32)
    config = load(None, DIGITS, environ={}).config
    train = open_source(config.data, 0).train
    labels = torch.from_numpy(train.labels)
    view = plain_view(preprocessing)
    rows = {row["cut"]: row for row in result["rows"]}
    assert result["images"] == len(train) == 60
    assert rows.keys() == {"stem", "fire9"}
    for cut, upto in (("stem", 1), ("fire9", len(network.stages) - 1)):
        with torch.inference_mode():
            x = torch.cat(
                [
                    network.features(normalise(view(train.read(i))[None], preprocessing), upto)
                    for i in range(len(train))
                ]
            ).mean((2, 3))
        assert rows[cut]["width"] == x.shape[1]
        assert rows[cut]["logme"] == pytest.approx(logme(x, labels), abs=TOLERANCE)
        assert rows[cut]["knn_accuracy"] == knn_accuracy(x, labels, 3)


def _read(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.slow
def test_one_two_and_three_processes_give_the_same_table(
    gloo_workers: GlooWorkers, weights: str
) -> None:
    """Two networks and all cuts of them; 60 images in batches of 25, so one process has padding."""
    options = {
        "models": ["squeezenet1_1=null", f"squeezenet1_1={weights}"],
        "cuts": "all",
        "batch_size": 25,
    }
    [one] = gloo_workers.run(1, of_workers, [], options)
    order = [row["logme"] for row in one["rows"]]
    assert order == sorted(order, reverse=True)
    assert len(order) == 2 * 9
    for world_size in (2, 3):
        for result in gloo_workers.run(world_size, of_workers, [], options):
            assert result["images"] == 60
            for mine, theirs in zip(result["rows"], one["rows"], strict=True):
                for key in ("network", "cut", "width", "knn_accuracy"):
                    assert mine[key] == theirs[key]
                assert mine["logme"] == pytest.approx(theirs["logme"], abs=TOLERANCE)


def test_the_table_and_the_json_say_the_same(
    weights: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ranking.json"
    models = f"squeezenet1_1={weights},squeezenet1_1=null"
    assert main([*DIGITS, "--models", models, "--output", str(file)]) == 0
    shown = capfd.readouterr().out
    assert "60 training images" in shown
    assert "5 nearest" in " ".join(shown.split())
    found = json.loads(file.read_text())
    for row in found["rows"]:
        assert f"{row['logme']:#.4g}" in shown
        assert f"{row['knn_accuracy']:#.4g}" in shown
    assert [row["cut"] for row in found["rows"]] == ["fire9", "fire9"]  # the last before the head
    assert main([*DIGITS, "--models", models, "--json"]) == 0
    said = capfd.readouterr()
    printed = json.loads(said.out)  # nothing else is there
    assert "60 training" in said.err
    for row in [*printed["rows"], *found["rows"]]:
        row.pop("seconds")
    assert printed == found


def test_a_bad_image_ends_it_or_is_left_out(
    labelled: Path, weights: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(labelled, root / "val")
    labelled.rename(root / "train")
    bad = root / "train" / "bee" / "1.png"
    bad.write_bytes(b"no image")
    given = [f"data.root={root}", "data.image_size=32"]
    given += ["--models", f"squeezenet1_1={weights}", "--output", str(tmp_path / "out.json")]
    assert main(given) == 2
    assert str(bad) in capfd.readouterr().err
    assert not (tmp_path / "out.json").exists()
    assert main([*given, "data.bad_images=skip"]) == 0
    assert capfd.readouterr().out.count(str(bad)) == 1
    assert json.loads((tmp_path / "out.json").read_text())["images"] == 15


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--models", "squeezenet1_2=null"], "unknown architecture 'squeezenet1_2'"),
        (["--models", "squeezenet1_2=null"], "Did you mean 'squeezenet1_"),
        (["--models", "resnet18=nowhere.pth"], "nowhere.pth"),
        (["--models", "resnet18=WEIGHTS"], "does not fit resnet18"),
        (["--models", "resnet18=null,resnet18=null"], "names resnet18=null twice"),
        (["--models", "resnet18=,resnet50"], "give NAME or NAME=WEIGHTS"),
        (["--cuts", "fire99"], "unknown stage of squeezenet1_1 'fire99'"),
        (["--cuts", "fire99"], "Did you mean 'fire9'?"),
        (["--cuts", "head"], "Give what comes before it: stem, fire2"),
        (["--neighbours", "60"], "60 training images, so at most 59 others"),
        (["data.classes=[3]"], "needs at least two"),
        (["data.max_train=1", "--neighbours", "1"], "training images of 1 class"),
        (["--output", "DIRECTORY"], "cannot write to --output"),
    ],
)
def test_mistakes(
    arguments: list[str],
    says: str,
    weights: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = ["model.name=squeezenet1_1", "model.weights=null"]
    places = {"WEIGHTS": weights, "DIRECTORY": str(tmp_path)}
    for name, place in places.items():
        arguments = [word.replace(name, place) for word in arguments]
    assert main([*DIGITS, *own, *arguments]) == 2
    said = capfd.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_an_interruption_leaves_nothing(
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("tl.engine.image_features.pooled_outputs", interrupted)
    given = ["--models", f"squeezenet1_1={weights}", "--output", str(tmp_path / "out.json")]
    assert main([*DIGITS, *given]) == 1
    assert capfd.readouterr().err == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "hymenoptera"])
def test_trained_weights_rank_above_random_ones(shared: Path, source: str) -> None:
    file = shared / "weights" / "squeezenet1_0-imagenet.pth"
    data = ["data.source=digits", "data.image_size=64", "data.train_per_class=20"]
    if source == "hymenoptera":
        data = [f"data.root={shared / 'data' / 'hymenoptera'}"]
    loaded = load(None, data, environ={})
    models = ["squeezenet1_0=null", f"squeezenet1_0={file}"]
    best, worst = rank(loaded, models=models)["rows"]
    assert best["weights"] == str(file)
    assert best["logme"] > worst["logme"] + 0.05
    assert best["knn_accuracy"] > worst["knn_accuracy"]
