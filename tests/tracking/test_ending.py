"""The end of a run in words: within 80 columns, true, and with commands that can be copied."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tl.tracking.ending import facts, results
from tl.tracking.plan import PhasePlan

PHASES = (PhasePlan("head", 300, 100, 100), PhasePlan("layer4", 300, 150, 100))
SUMMARY: dict[str, Any] = {
    "best_metric": "val/accuracy",
    "best_step": 300,
    "steps": 600,
    "images": 4800,
    "val/accuracy": 0.95,
    "val/loss": 0.5,
    "val/macro_f1": 0.9,
    "last/val/accuracy": 0.92,
    "last/val/loss": 0.25,
    "last/val/macro_f1": 0.8,
    "wall_seconds": 123.4,
    "training_seconds": 95.0,
    "images_per_second": 50.5,
    "trainable_parameters": 5130,
    "frozen_parameters": 1_234_567,
    "frozen_unchanged": True,
    "early_stops": [],
}
TARGET = {f"{at}{key}": 0.5 for at in ("", "last/") for key in ("target/im", "oracle/accuracy")}


def table_of(summary: dict[str, Any], width: int = 80) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=width)
    console.print(results(summary, PHASES))
    assert isinstance(console.file, io.StringIO)
    rows = console.file.getvalue().splitlines()
    assert max(map(len, rows)) <= width
    return [row.split() for row in rows if row.strip() and "─" not in row]


def test_the_best_evaluation_and_the_last_are_side_by_side() -> None:
    header, best, last = table_of(SUMMARY)
    assert " ".join(header) == "step epoch phase val acc val loss"
    # Step 300 is the last of the head's third epoch; the second phase has two of 150 steps.
    assert best == ["best", "300", "3", "head", "0.9500", "0.5000"]
    assert last == ["last", "600", "5", "layer4", "0.9200", "0.2500"]


def test_what_the_best_was_chosen_by_comes_first() -> None:
    header, best, _ = table_of({**SUMMARY, "best_metric": "val/macro_f1"})
    assert " ".join(header) == "step epoch phase val f1 val loss val acc"
    assert best[4] == "0.9000"


def test_an_adaptation_with_everything_fits_eighty_columns() -> None:
    header, best, last = table_of({**SUMMARY, **TARGET, "best_metric": "target/im"})
    assert " ".join(header).startswith("step epoch phase target im val loss val acc oracle acc")
    assert (best[0], last[0], len(best)) == ("best", "last", 8)


def test_the_rest_is_a_line_each_within_eighty_columns(tmp_path: Path) -> None:
    early = {"phase": "head", "step": 300, "why": "no val/accuracy better than 0.95 in 3"}
    lines = facts({**SUMMARY, "early_stops": [early]}, Path("runs/a"), "").splitlines()
    [ended] = [line for line in lines if "ended" in line]
    assert ended.split(maxsplit=1) == [
        "early",
        f"phase head ended early, after step 300: {early['why']}",
    ]
    lines.remove(ended)  # it may be of any length
    assert max(map(len, lines)) <= 80
    assert [line.split(maxsplit=1) for line in lines] == [
        ["time", "2:03, of which training 1:35"],
        ["speed", "50.5 images/s in training"],
        ["trained", "5,130 parameters; 1,234,567 frozen, unchanged"],
        ["model", "runs/a/model"],
        ["next", "tl evaluate runs/a"],
        ["tl", "predict runs/a IMAGES"],
    ]


@pytest.mark.parametrize(
    ("parameters", "unchanged", "said"),
    [
        (0, None, "5,130 parameters"),
        (7, True, "5,130 parameters; 7 frozen, unchanged"),
        (0, True, "5,130 parameters; what a phase froze did not change in it"),
    ],
)
def test_what_was_frozen_is_said_to_be_proven(
    parameters: int, unchanged: bool | None, said: str
) -> None:
    """A parameter that trains in any phase counts as trained; others freeze it."""
    summary = {**SUMMARY, "frozen_parameters": parameters, "frozen_unchanged": unchanged}
    assert facts(summary, Path("a"), "").splitlines()[2].split(maxsplit=1) == ["trained", said]


def test_report_and_link_are_named_if_they_are_there(tmp_path: Path) -> None:
    before = facts(SUMMARY, tmp_path, "")
    (tmp_path / "report.html").touch()
    after = facts(SUMMARY, tmp_path, "https://wandb.ai/a/b/runs/c")
    assert "  report " not in before
    assert "W&B" not in before
    assert f"report       {tmp_path / 'report.html'}\n" in after
    assert "W&B          https://wandb.ai/a/b/runs/c\n" in after


def test_a_folder_of_any_name_can_be_copied_from_the_command_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a b'c " + "x" * 100)
    evaluate, predict = facts(SUMMARY, folder, "").splitlines()[-2:]
    assert shlex.split(evaluate) == ["next", "tl", "evaluate", str(folder)]
    assert shlex.split(predict) == ["tl", "predict", str(folder), "IMAGES"]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(facts(SUMMARY, folder, "").splitlines()[-1])[2] == folder.name
