"""What W&B gets when a run is done, besides its lines: tables with images, and the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tl.errors import UserError
from tl.tracking.findings import FILE, FOLDER, Findings, Mistake, read_findings, write_findings

from .stand_in_server import StandInServer
from .wandb_runs import new_run, on_server, recorded, run, said, sync, took

WEIGHTS = {"model": b"the best weights", "last": b"the last weights"}
CONFUSION = [[0, 0, 5], [0, 1, 2], [1, 0, 1], [1, 1, 4]]
FOUND = Findings(
    classes=["cat", "dog"],
    confusion=CONFUSION,
    per_class=[
        {"class": "cat", "precision": 5 / 6, "recall": 5 / 7, "f1": 10 / 13, "images": 7},
        {"class": "dog", "precision": 4 / 6, "recall": 4 / 5, "f1": 8 / 11, "images": 5},
    ],
    mistakes=[Mistake("cat/1.jpg", "cat", "dog", 0.9), Mistake("dog/2.jpg", "dog", "cat", 0.8)],
)
DONE = {"leaves_models": True}


def run_with_extras(folder: Path, *overrides: str, same: bool = False) -> Path:
    """A run's folder as it is when it has trained: findings, and two models."""
    new_run(folder, *overrides)
    write_findings(folder, FOUND, [Image.new("RGB", (400, 100), "red"), None])
    about = {"architecture": "toy", "classes": ["cat", "dog"]}
    for name, weights in WEIGHTS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(about))
        (folder / name / "model.safetensors").write_bytes(WEIGHTS["model"] if same else weights)
    return folder


def table_of(row: dict[str, Any], key: str, server: StandInServer) -> dict[str, Any]:
    """The content of a table in a row: wandb keeps it in an artifact of the run."""
    assert row[key]["_type"] == "table-file"
    [stored] = [
        s for s in server.artifacts.of_type("run_table") if key.rpartition("/")[2] in s.name
    ]
    [content] = [data for name, data in stored.files.items() if name.endswith(".table.json")]
    return json.loads(content)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose best and last model are sent, its server and what it said."""
    server = StandInServer()
    folder = run_with_extras(tmp_path_factory.mktemp("runs") / "run", "tracking.wandb.model=both")
    yield folder, server, run(folder, DONE, server)
    server.close()


def test_the_confusion_matrix_is_a_chart_of_wandbs(sent: Any) -> None:
    _, server, _ = sent
    stored = server.runs["abc123"]
    row = stored.history[-1]
    assert (row["step"], row["_step"]) == (30, 3090)
    chart = table_of(row, "val/confusion_matrix_table", server)
    assert chart["columns"] == ["Actual", "Predicted", "nPredictions"]
    names = FOUND.classes
    assert chart["data"] == [[names[i], names[j], n] for i, j, n in CONFUSION]
    config = json.loads(stored.variables["config"])
    [shown] = config["_wandb"]["value"]["visualize"].values()
    assert shown["panel_config"]["panelDefId"] == "wandb/confusion_matrix/v1"


def test_classes_and_mistakes_are_tables_and_mistakes_have_their_images(sent: Any) -> None:
    _, server, _ = sent
    row = server.runs["abc123"].history[-1]
    classes = table_of(row, "val/per_class", server)
    assert classes["columns"] == ["class", "precision", "recall", "f1", "images"]
    assert [line[0] for line in classes["data"]] == ["cat", "dog"]
    mistakes = table_of(row, "val/mistakes", server)
    assert mistakes["columns"] == ["image", "file", "class", "predicted", "probability"]
    assert [line[1:] for line in mistakes["data"]] == [
        ["cat/1.jpg", "cat", "dog", 0.9],
        ["dog/2.jpg", "dog", "cat", 0.8],
    ]
    image = mistakes["data"][0][0]
    assert (image["_type"], image["width"], image["height"]) == ("image-file", 224, 56)
    assert mistakes["data"][1][0] is None


def test_the_models_are_versions_of_an_artifact_and_the_best_is_called_so(sent: Any) -> None:
    _, server, _ = sent
    last, best = server.artifacts.of_type("model")
    assert (best.name, last.name) == ("model-abc123", "model-abc123")
    assert (sorted(best.aliases), sorted(last.aliases)) == (["best", "latest"], ["last", "latest"])
    assert best.files["model.safetensors"] == WEIGHTS["model"]
    assert last.files["model.safetensors"] == WEIGHTS["last"]
    assert json.loads(best.files["config.json"])["classes"] == ["cat", "dog"]
    assert best.metadata == {
        "sha256": hashlib.sha256(WEIGHTS["model"]).hexdigest(),
        "architecture": "toy",
        "classes": ["cat", "dog"],
        "val/accuracy": 0.5,
        "step": 20,
    }
    assert (last.metadata["val/accuracy"], last.metadata["step"]) == (0.25, 30)


def test_the_lines_are_what_they_were_and_a_sync_finds_nothing_to_send(sent: Any) -> None:
    folder, server, output = sent
    assert on_server(server) == recorded(folder)
    assert [line.startswith("W&B: http") for line in said(output)] == [True, True]
    artifacts = len(server.artifacts.all)
    assert "W&B has it all" in sync(folder, server=server)
    assert len(server.artifacts.all) == artifacts
    # Of summary.json there are the best model's; what wandb itself would show is the last value.
    assert server.runs["abc123"].summary["last/val/loss"] == 2 / 30
    assert server.runs["abc123"].summary["val/accuracy"] == 0.5


@pytest.mark.slow
def test_an_offline_run_keeps_its_tables_and_a_sync_sends_them_and_the_model(
    tmp_path: Path, server: StandInServer, read_wandb_file: Any
) -> None:
    folder = run_with_extras(tmp_path / "run", "tracking.wandb.model=both", same=True)
    run(folder, DONE, WANDB_MODE="offline")
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    row = read_wandb_file(file)["history"][-1]
    assert row["val/mistakes._type"] == "table-file"
    assert b"the best weights" not in file.read_bytes()
    told = sync(folder, server=server)
    assert "6 of 6 lines sent" in told
    assert len(server.artifacts.of_type("run_table")) == 3
    [model] = server.artifacts.of_type("model")
    assert sorted(model.aliases) == ["best", "last", "latest"]
    assert "W&B has it all" in sync(folder, server=server)


@pytest.mark.slow
def test_an_upload_that_fails_is_said_and_made_up_for_by_a_sync(
    tmp_path: Path, server: StandInServer
) -> None:
    folder = run_with_extras(tmp_path / "run", "tracking.wandb.model=best")
    server.fault = "artifacts/hangs"
    options = {**DONE, "model_seconds": 2, "finish_seconds": 2}
    output = run(folder, options, server)
    assert took(output, "finish") < 9
    _, why, later = said(output)
    assert why.startswith("W&B: no tables or no model: ")
    assert later == f"W&B did not take everything; to send the run later: tl sync {folder}"
    assert on_server(server) == recorded(folder)
    server.fault = ""
    sync(folder, server=server)
    [model] = server.artifacts.of_type("model")
    assert sorted(model.aliases) == ["best", "latest"]
    # The row of the tables came, and what it refers to did not: it is there again.
    tables = [row["_step"] for row in server.runs["abc123"].history if "val/mistakes" in row]
    assert tables == [3090, 3091]
    assert on_server(server) == recorded(folder)


@pytest.mark.slow
def test_a_service_that_dies_under_the_upload_ends_the_tracker_and_not_the_run(
    tmp_path: Path, server: StandInServer
) -> None:
    folder = run_with_extras(tmp_path / "run", "tracking.wandb.model=best")
    output = run(folder, {**DONE, "before_the_end": "kill_service"}, server)
    assert took(output, "finish") < 10
    assert said(output)[-1].endswith(f"to send the run later: tl sync {folder}")
    assert "Traceback" not in output
    sync(folder, server=server)
    assert len(server.artifacts.of_type("model")) == 1


def test_findings_come_back_as_they_were_and_what_is_none_is_named(tmp_path: Path) -> None:
    assert read_findings(tmp_path) is None
    write_findings(tmp_path, FOUND, [Image.new("L", (30, 10)), None])
    found = read_findings(tmp_path)
    assert found is not None
    assert [mistake.picture for mistake in found.mistakes] == ["000.jpg", ""]
    assert (found.classes, found.confusion, found.per_class) == (
        FOUND.classes, FOUND.confusion, FOUND.per_class,
    )  # fmt: skip
    fewer = Findings(FOUND.classes, CONFUSION, FOUND.per_class, FOUND.mistakes[1:])
    write_findings(tmp_path, fewer, [None])
    assert not list((tmp_path / FOLDER).glob("*.jpg"))
    path = tmp_path / FOLDER / FILE
    values = json.loads(path.read_text())
    values["mistakes"][0]["picture"] = "../../etc/passwd"
    for bad in (json.dumps(values), "[]", "{"):
        path.write_text(bad)
        with pytest.raises(UserError, match="is not as a run wrote it"):
            read_findings(tmp_path)
