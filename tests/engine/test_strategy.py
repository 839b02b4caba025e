"""Phases that follow from the network and the data: decided once, and recorded."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers

from launch import train
from tl import yaml12
from tl.arguments import load
from tl.engine import gradient_norms, strategy
from tl.engine import run as engine_run
from tl.errors import Preempted, UserError

COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=13",
    "data.max_val=7",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=8",
    "tracking.trackers=[jsonl]",
    "threads=1",
]


def run(folder: Path, *overrides: str, resume: str = "auto", dry_run: bool = False) -> str:
    """Start a run, or go on with it; returns what it says."""
    said = io.StringIO()
    loaded = load(None, [*COMMON, *overrides, f"run_dir={folder}"], environ={})
    with contextlib.redirect_stdout(said):
        engine_run.run(loaded, resume=resume, dry_run=dry_run)
    return said.getvalue()


def decided(folder: Path) -> dict[str, Any]:
    return json.loads((folder / strategy.FILE).read_text())


def trains(folder: Path) -> list[str]:
    config = yaml12.load((folder / "config.yaml").read_text(), "config.yaml")[0]
    assert config["strategy"] is None
    return [phase["train"] for phase in config["phases"]]


def plan(*overrides: str) -> str:
    return run(Path("nowhere"), *overrides, resume="never", dry_run=True)


def test_surgical_decides_the_same_on_any_number_of_processes(
    gloo_workers: GlooWorkers,
) -> None:
    lines = set()
    for world_size in (1, 2):
        said = gloo_workers.run(world_size, plan, "strategy=surgical")[0]
        [why] = [line for line in said.splitlines() if line.startswith("surgical: ")]
        [title] = [line for line in said.splitlines() if line.startswith("phase surgical: ")]
        lines.add((why, title.strip()))
    [(why, title)] = lines
    norms = {s: float(norm) for s, norm in re.findall(r"(stem|fire\d) (\d\S+\d)", why)}
    assert len(norms) == 9
    assert f"surgical({max(norms, key=norms.__getitem__)}) trains" in title


def test_a_run_that_goes_on_does_not_decide_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "stop").touch()
    with pytest.raises(Preempted):
        run(folder, "strategy=surgical", "epochs=1")
    before = decided(folder)
    norms = {name: norm for name, norm in before["measured"].items() if name != "head"}
    assert trains(folder) == [f"surgical({max(norms, key=norms.__getitem__)})"]

    def measured(*_: Any) -> Any:
        raise AssertionError("it was measured again")

    monkeypatch.setattr(gradient_norms, "measure", measured)
    said = run(folder, "strategy=surgical", "epochs=2")  # longer, with the same decision
    assert "going on after step" in said
    assert before["why"] in said
    assert decided(folder) == before
    # What a run has written down does not need it either.
    loaded = load(folder / "config.yaml", environ={})
    assert [phase.train for phase in loaded.phases] == trains(folder)
    assert loaded.phases[0].epochs == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"strategy": "surgical"}',
        '{"strategy": "surgical(auto)", "measured": {}}',
        '{"strategy": "surgical", "measured": {"stem": 1e999}}',
        '{"strategy": "surgical", "measured": {"stem": "1"}}',
        '{"strategy": "surgical", "measured": [1.0]}',
    ],
)
def test_a_record_that_does_not_fit_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / strategy.FILE).write_text(text)
    assert strategy.measured_before(tmp_path, "surgical") == {}
    assert strategy.measured_before(tmp_path / "nowhere", "surgical") == {}
    (tmp_path / strategy.FILE).write_text('{"strategy": "surgical", "measured": {"stem": 1.0}}')
    assert strategy.measured_before(tmp_path, "surgical") == {"stem": 1.0}
    assert strategy.measured_before(tmp_path, "surgical(auto)") == {}


def test_gradual_trains_stage_after_stage_and_its_config_runs_again(tmp_path: Path) -> None:
    said = run(tmp_path / "run", "strategy=gradual(8)", "epochs=3")
    assert "gradual: 10 stages, 8 more in each of 3 phases" in said
    assert trains(tmp_path / "run") == ["head", "from_stage(fire2)", "full"]
    loaded = load(tmp_path / "run" / "config.yaml", [f"run_dir={tmp_path / 'again'}"], environ={})
    engine_run.run(loaded)
    files = [tmp_path / name / "last" / "model.safetensors" for name in ("run", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "again" / strategy.FILE).exists()


def test_a_dry_run_shows_the_phases_and_writes_nothing(tmp_path: Path) -> None:
    said = run(tmp_path / "run", "strategy=gradual", "epochs=2", resume="never", dry_run=True)
    assert "phase gradual1: head trains" in said
    assert "phase gradual2: full trains" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gradual", "auto", "surgical"])
def test_alone_it_has_the_phases_that_the_run_has(name: str) -> None:
    overrides = [f"strategy={name}", "epochs=3"]
    torch.set_num_threads(1)
    alone = strategy.spell_out_alone(load(None, [*COMMON, *overrides], environ={}))
    said = plan(*overrides)
    assert alone.decided["why"] in said
    titles = re.findall(r"^phase (\S+): (\S+) trains", said, re.MULTILINE)
    assert [(phase.name, phase.train) for phase in alone.phases] == titles


def test_print_config_spells_them_out_as_yaml_that_loads_to_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*COMMON, "strategy=surgical", "phases.0.clip_norm=3", "--print-config"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(text)
    (phase,) = load(tmp_path / "c.yaml", environ={}).phases
    assert f"# surgical: {phase.train[9:-1]} has the highest" in text
    assert phase.clip_norm == 3


def test_the_plan_has_the_rate_of_each_depth() -> None:
    said = plan("strategy=layer_decay(0.5)", "optimizer.lr=0.08")
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert (rows["stage"][1], rows["head"][1], rows["stem"][1]) == ("depth", "0", "9")
    for depth, stage in enumerate(["head", *(f"fire{i}" for i in range(9, 1, -1)), "stem"]):
        assert float(rows[stage][-1]) == pytest.approx(0.08 * 0.5**depth, rel=0.005)
    # And with one rate for all there is nothing to tell apart.
    assert "depth" not in plan("strategy=full")


def test_phases_that_are_wrong_are_said_with_the_strategy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give epochs=10, or gradual\(9\) \(command line: strat"):
        run(tmp_path / "run", "strategy=gradual(1)", "epochs=2")
    with pytest.raises(UserError, match=r"phases\.0\.objective"):
        run(tmp_path / "run", "strategy=gradual", "phases.0.objective=supervized")
    assert not (tmp_path / "run").exists()
