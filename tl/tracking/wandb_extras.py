"""What W&B gets of a run that is done, besides its lines: tables, pictures, the model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl.atomic import from_json
from tl.tracking.findings import FOLDER, Findings, read_findings
from tl.tracking.tracker import SUMMARY
from tl.tracking.wandb_rows import LINES_PER_STEP, ROWS_PER_STEP
from tl.tracking.wandb_service import Sender

MOST_ROWS = 10_000
"""of a table: W&B's charts and its pages show no more"""
FOLDERS = {"best": "model", "last": "last"}
"""of the models in a run's folder, by their alias in W&B"""


def send_tables(sender: Sender, run_dir: Path, steps: int) -> None:
    """Log the confusion matrix, the numbers of each class and the mistakes, if a run has them.

    Raises:
        UserError: the file is not as the run wrote it.
    """
    found = read_findings(run_dir)
    if found is None:
        return
    columns: list[str | int] = list(found.per_class[0])
    values = {
        "val/confusion_matrix": _confusion(found),
        "val/per_class": _table(columns, [list(row.values()) for row in found.per_class]),
        "val/mistakes": _mistakes(found, run_dir / FOLDER),
    }
    # Tables that did not arrive come again, in a row that is not that of a later line.
    at = max(steps * ROWS_PER_STEP + LINES_PER_STEP, sender.position + 1)
    if at >= (steps + 1) * ROWS_PER_STEP:
        return
    sender.send((at, {"step": steps, **values}))


def send_models(run: Any, run_dir: Path, which: str, seconds: float) -> None:
    """Upload models as versions of one artifact of the run, and wait until W&B has them.

    If the best one is the last one, it is one version with both aliases.

    Args:
        which: `tracking.wandb.model`.
        seconds: how long each may take.

    Raises:
        wandb.Error, ValueError: W&B has not taken one in time, or not at all.
    """
    import wandb

    wanted = list(FOLDERS) if which == "both" else [which]
    by_content: dict[str, list[str]] = {}
    for alias in wanted:
        by_content.setdefault(_digest(run_dir / FOLDERS[alias]), []).append(alias)
    # The later one gets "latest" from W&B.
    for digest, aliases in reversed(by_content.items()):
        folder = run_dir / FOLDERS[aliases[0]]
        about = from_json((folder / "config.json").read_bytes())
        artifact = wandb.Artifact(
            f"model-{run.id}",
            type="model",
            metadata={
                "sha256": digest,
                "architecture": about["architecture"],
                "classes": about["classes"],
                **_numbers(run_dir, aliases),
            },
        )
        for name in ("config.json", "model.safetensors"):
            # A run that is done does not change it: no copy, here or in wandb's cache.
            artifact.add_file(str(folder / name), policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=aliases).wait(timeout=seconds)


@contextlib.contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Have wandb keep the files of tables there until they are sent, not in the home folder."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _confusion(found: Findings) -> Any:
    """W&B's own chart; of so many classes that it cannot show them, a table of what is mistaken."""
    import wandb

    names, counts = found.classes, {(i, j): n for i, j, n in found.confusion}
    if len(names) ** 2 > MOST_ROWS:
        wrong = sorted((c for c in found.confusion if c[0] != c[1]), key=lambda c: -c[2])
        rows = [[names[i], names[j], n] for i, j, n in wrong]
        return _table(["class", "predicted", "images"], rows)
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    places = [(i, j) for i in range(len(names)) for j in range(len(names))]
    rows = [[names[i], names[j], counts.get((i, j), 0)] for i, j in places]
    # As wandb.plot.confusion_matrix, which would count each image anew.
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=rows),
        {str(name): str(name) for name in columns},
        {"title": "Confusion matrix of the best model on the validation images"},
    )


def _mistakes(found: Findings, folder: Path) -> Any:
    import wandb

    rows = []
    for mistake in found.mistakes:
        picture = folder / mistake.picture
        shown = wandb.Image(str(picture)) if mistake.picture and picture.is_file() else None
        rows.append([shown, mistake.file, mistake.label, mistake.predicted, mistake.probability])
    return _table(["image", "file", "class", "predicted", "probability"], rows)


def _table(columns: list[str | int], rows: list[list[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=columns, data=rows[:MOST_ROWS])


def _numbers(run_dir: Path, aliases: list[str]) -> dict[str, Any]:
    """What summary.json says of the model with these aliases."""
    summary = from_json((run_dir / SUMMARY).read_bytes())
    start = "" if "best" in aliases else "last/"
    names = ("val/accuracy", "val/loss", "val/macro_f1", "target/im")
    numbers = {name: summary[start + name] for name in names if start + name in summary}
    step = summary["best_step"] if "best" in aliases else summary["steps"]
    return {**numbers, "step": step}


def _digest(folder: Path) -> str:
    import hashlib

    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
