"""The report of real runs: the same on any number of processes, and never a reason to fail."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gloo_workers import GlooWorkers
from pages import Page, assert_harmless, assert_orderly

from launch.report import main
from tl.arguments import load
from tl.engine import run as engine_run
from tl.errors import Preempted
from tl.report import kept
from tl.report.kept import read_validation

COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=24",
    "data.max_val=15",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=12",
    "optimizer.lr=0.05",
    "data.workers=0",
    "augment=flip",
    "strategy=lp_ft",
    "epochs=4",
    "tracking.trackers=[jsonl, console]",
]


def train(run_dir: str, *overrides: str) -> str:
    """A run; what it has said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(Preempted):
        loaded = load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={})
        engine_run.run(loaded, resume="auto")
    return said.getvalue()


@pytest.fixture(scope="module")
def runs(gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One run on one process and on three."""
    folder = tmp_path_factory.mktemp("runs")
    for processes in (1, 3):
        gloo_workers.run(processes, train, str(folder / f"on {processes}"))
    return {processes: folder / f"on {processes}" for processes in (1, 3)}


def test_a_run_leaves_its_report(runs: dict[int, Path]) -> None:
    for processes, run in runs.items():
        page = Page((run / "report.html").read_text("utf-8"))
        assert_harmless(page)
        assert_orderly(page)
        assert len(page.all("img")) > 20
        assert "epoch 4" in page.text  # of the second phase; the first sees plain images
        memory = kept.read_json(run, kept.TIMES)["memory"]
        assert [row["rank"] for row in memory] == list(range(processes))
        assert all(row["bytes"] > 2**20 for row in memory)
        assert sum(path.stat().st_size for path in (run / "report").iterdir()) < 100_000


def test_what_is_kept_is_the_same_on_three_processes(runs: dict[int, Path]) -> None:
    alone, together = (read_validation(run, 10) for run in runs.values())
    assert alone is not None
    assert together is not None
    assert alone.step == together.step
    assert alone.names == together.names
    np.testing.assert_array_equal(alone.confusion, together.confusion)
    for which in ("compared", "bins"):
        ours, theirs = getattr(alone.seen, which), getattr(together.seen, which)
        np.testing.assert_array_equal(ours[:-1], theirs[:-1])
        # Weights and so probabilities are the same to the rounding of float32.
        np.testing.assert_allclose(ours[-1], theirs[-1], rtol=1e-4)


def test_it_agrees_with_the_summary(runs: dict[int, Path]) -> None:
    for run in runs.values():
        found = read_validation(run, 10)
        assert found is not None
        assert found.images == 15
        best = kept.from_json((run / "summary.json").read_bytes())
        assert found.right / found.images == pytest.approx(best["val/accuracy"])
        assert found.step == best["best_step"]


def test_tl_report_makes_it_again(runs: dict[int, Path], tmp_path: Path) -> None:
    run = runs[1]
    assert main([str(run), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == (run / "report.html").read_text()
    together = tmp_path / "both.html"
    assert main([*map(str, runs.values()), "--output", str(together)]) == 0
    assert_orderly(Page(together.read_text("utf-8")))
    assert main([str(tmp_path)]) == 2


def test_training_goes_on_where_a_report_cannot_be_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "report.html").mkdir(parents=True)  # no file can take its place
    said = train(str(run), "strategy=head", "epochs=1")
    assert said.count("report.html is not written, the run goes on: IsADirectoryError") == 1
    assert "done: " in said


def test_without_reports_a_run_keeps_nothing_for_them(tmp_path: Path) -> None:
    train(str(tmp_path / "run"), "strategy=head", "epochs=1", "tracking.report=false")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "summary.json" in left
    assert not left & {"report", "report.html"}


def test_a_stopped_run_shows_how_far_it_came(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = train(str(run), "epochs=100", "time_limit=15s", "strategy=head", "augment=none")
    status: dict[str, Any] = kept.from_json((run / "status.json").read_bytes())
    assert status["state"] == "preempted", said
    page = Page((run / "report.html").read_text("utf-8"))
    assert_orderly(page)
    assert "The run was stopped after step" in page.text
