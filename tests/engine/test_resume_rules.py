"""Every key of a config has a rule for when a run goes on, and what differs is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tl.arguments import Loaded, load
from tl.config import Config, Phase, Training
from tl.engine.resume_rules import PHASE, RUN, changes, refuse_fatal, rule_of
from tl.errors import UserError
from tl.mistakes import leaves

PHASES = (
    "phases=[{name: probe, train: head, epochs: 1}, {name: tune, train: last_stages(2), epochs: 3},"
    " {name: all, train: full, epochs: 2}]"
)


def loaded(*overrides: str) -> Loaded:
    return load(None, [PHASES, *overrides], environ={})


def rules(*overrides: str, phase: int = 1) -> dict[str, str]:
    return {change.key: change.rule for change in changes(loaded(), loaded(*overrides), phase)}


def _dotted(model: type) -> set[str]:
    return {".".join(map(str, path)) for path, _ in leaves(model)}


def test_every_key_has_a_rule_and_every_rule_has_a_key() -> None:
    stand_for_phases = {"strategy", "phases"}
    of_run = _dotted(Config) - _dotted(Training) - stand_for_phases
    for keys, table in ((of_run, RUN), (_dotted(Phase), PHASE)):
        for key in keys:
            assert rule_of(key, table) in ("fatal", "warned", "free")
        for rule in table:
            assert any(key == rule or key.startswith(f"{rule}.") for key in keys), rule


def test_no_change_is_none() -> None:
    assert rules() == {}


@pytest.mark.parametrize(
    ("override", "key", "rule"),
    [
        ("seed=3", "seed", "fatal"),
        ("model.name=resnet34", "model.name", "fatal"),
        ("phases.1.train=full", "phases.1.train", "fatal"),
        ("phases.1.global_batch_size=64", "phases.1.global_batch_size", "fatal"),
        ("phases.1.optimizer.name=adamw", "phases.1.optimizer.name", "fatal"),
        ("phases.1.optimizer.lr=0.5", "phases.1.optimizer.lr", "warned"),
        ("phases.2.schedule.name=step", "phases.2.schedule.name", "warned"),
        ("phases.1.epochs=9", "phases.1.epochs", "warned"),
        ("phases.1.mixup=0.2", "phases.1.mixup", "warned"),
        ("phases.1.objective_options={k: 3}", "phases.1.objective_options.k", "warned"),
        ("mixed_precision=bf16", "mixed_precision", "warned"),
        ("data.workers=3", "data.workers", "free"),
        ("data.target_root=/b", "data.target_root", "warned"),
        ("data.max_target=5", "data.max_target", "fatal"),
        ("model.bottleneck=5", "model.bottleneck", "fatal"),
        ("checkpoint.every_steps=5", "checkpoint.every_steps", "free"),
        ("tracking.log_every=3", "tracking.log_every", "free"),
        ("run_dir=elsewhere", "run_dir", "free"),
    ],
)
def test_a_change_has_the_rule_of_its_key(override: str, key: str, rule: str) -> None:
    assert rules(override) == {key: rule}


def test_a_weights_file_may_lie_elsewhere_but_be_no_other_kind_of_weights() -> None:
    file, moved = loaded("model.weights=a/w.pth"), loaded("model.weights=b/w.pth")
    assert [change.rule for change in changes(file, moved, 0)] == ["warned"]
    assert [change.rule for change in changes(file, loaded(), 0)] == ["fatal"]
    assert [change.rule for change in changes(file, loaded("model.weights=null"), 0)] == ["fatal"]


def test_the_same_run_dir_said_from_another_folder_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert changes(loaded("run_dir=r"), loaded(f"run_dir={tmp_path}/r"), 0) == []


def test_nothing_of_a_phase_that_is_over_may_change() -> None:
    assert rules("phases.0.optimizer.lr=0.5") == {"phases.0.optimizer.lr": "fatal"}
    assert rules("phases.0.optimizer.lr=0.5", phase=0) == {"phases.0.optimizer.lr": "warned"}


def test_a_shared_training_key_counts_as_the_phases_that_take_it() -> None:
    found = rules("optimizer.lr=0.5", phase=1)
    assert found == {
        "phases.0.optimizer.lr": "fatal",
        "phases.1.optimizer.lr": "warned",
        "phases.2.optimizer.lr": "warned",
    }


def test_a_strategy_and_the_phases_it_stands_for_are_the_same() -> None:
    short = load(None, ["strategy=head"], environ={})
    long = load(None, ["phases=[{name: head, train: head}]"], environ={})
    assert changes(short, long, 0) == []


def test_phases_may_be_added_at_the_end_and_taken_away_before_they_begin() -> None:
    less = load(None, [PHASES.replace(", {name: all, train: full, epochs: 2}", "")], environ={})
    [added] = changes(less, loaded(), 1)
    assert (added.rule, added.before, added.now) == ("warned", [], ["all"])
    [removed] = changes(loaded(), less, 1)
    assert (removed.rule, removed.before, removed.now) == ("warned", ["all"], [])
    [begun] = changes(loaded(), less, 2)
    assert begun.rule == "fatal"


def test_only_fatal_changes_are_refused_each_with_both_values() -> None:
    found = changes(loaded(), loaded("seed=3", "phases.1.optimizer.lr=0.5", "data.workers=1"), 1)
    with pytest.raises(UserError) as caught:
        refuse_fatal(found, Path("runs/x"))
    assert "runs/x" in str(caught.value)
    assert "seed: 0 before, 3 now" in str(caught.value)
    assert "optimizer" not in str(caught.value)
    refuse_fatal([change for change in found if change.rule != "fatal"], Path("runs/x"))
    texts = list(map(str, found))
    assert "data.workers: null before, 1 now (the result stays the same)" in texts
    assert "phases.1.optimizer.lr: 0.01 before, 0.5 now" in texts
