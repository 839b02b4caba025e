"""What a strategy stands for, and what a phase takes over from the keys above it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tl.arguments import load
from tl.config import Phase, Training
from tl.errors import UserError
from tl.phases import expand, load_object, parse_call


def phases(*overrides: str) -> tuple[Phase, ...]:
    return load(None, overrides, environ={}).phases


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head", ("head", None)),
        (" last_stages ( 2 ) ", ("last_stages", "2")),
        ("regex(a(b|c)\\)d)", ("regex", "a(b|c)\\)d")),
        ("regex((?s:.)\n)", ("regex", "(?s:.)")),
        ("package.module:name(x, y)", ("package.module:name", "x, y")),
        ("head()", ("head", "")),
    ],
)
def test_a_call_is_a_name_and_its_argument_as_it_stands(
    text: str, expected: tuple[str, str | None]
) -> None:
    assert parse_call(text, "strategy") == expected


@pytest.mark.parametrize("text", ["", "head)", "head(2", "two words", "(2)", "head(2) x"])
def test_what_is_no_call_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is neither a name nor name"):
        parse_call(text, "strategy")


@pytest.mark.parametrize(
    ("strategy", "name", "train"),
    [
        ("full", "full", "full"), ("head", "head", "head"), ("norm", "norm", "norm"),
        ("bias", "bias", "bias"), ("last_stages(2)", "last_stages", "last_stages(2)"),
        ("from_stage(layer3)", "from_stage", "from_stage(layer3)"),
        ("regex(layer4|fc)", "regex", "regex(layer4|fc)"),
        ("freeze_embed", "freeze_embed", "freeze_embed"),
        ("surgical(layer2)", "surgical", "surgical(layer2)"),
    ],
)  # fmt: skip
def test_a_freezing_strategy_stands_for_one_phase(strategy: str, name: str, train: str) -> None:
    only = expand(strategy, Training())
    assert only == [{"name": name, "train": train}]
    assert phases(f"strategy={strategy}")[0] == Phase(name=name, train=train)


def test_an_unknown_strategy_offers_the_nearest_with_its_place() -> None:
    with pytest.raises(UserError) as caught:
        load(None, ["strategy=last_stage(2)"], environ={})
    message = str(caught.value)
    assert message.startswith("unknown strategy 'last_stage'. Did you mean 'last_stages'?")
    assert message.endswith("(command line: strategy=last_stage(2))")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    code = (
        "def two(argument, training):\n"
        "    half = {'epochs': training.epochs // 2}\n"
        "    return [{'name': 'a', 'train': 'head', **half},"
        " {'name': 'b', 'train': argument or 'full', **half}]\n"
        "def none(argument, training):\n"
        "    return []\n"
    )
    (tmp_path / "strategies_from_outside.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("strategies_from_outside", None)


@pytest.mark.usefixtures("outside")
def test_a_strategy_from_outside_sees_its_argument_and_the_training_keys() -> None:
    found = phases("strategy=strategies_from_outside:two(bias)", "epochs=8")
    assert [(p.name, p.train, p.epochs) for p in found] == [("a", "head", 4), ("b", "bias", 4)]


@pytest.mark.usefixtures("outside")
def test_a_strategy_without_phases_is_refused() -> None:
    with pytest.raises(UserError, match="a list of at least one phase"):
        phases("strategy=strategies_from_outside:none")


@pytest.mark.parametrize("reference", ["no_such_module:x", "math:no_such", "math:", ":x", ".a:b"])
def test_what_cannot_be_imported_is_a_mistake_with_its_mend(reference: str) -> None:
    with pytest.raises(UserError, match=r"cannot be imported: .*must be package\.module:name"):
        load_object(reference, "strategy")


def test_a_phase_keeps_the_other_keys_of_a_group_it_changes() -> None:
    (phase,) = phases(
        "optimizer.momentum=0.5",
        "schedule={name: step, gamma: 0.3}",
        "augment=flip",
        "phases=[{train: full, optimizer: {lr: 0.25}, schedule: {step_epochs: 2}}]",
    )
    assert (phase.optimizer.lr, phase.optimizer.momentum) == (0.25, 0.5)
    schedule = phase.schedule
    assert (schedule.name, schedule.gamma, schedule.step_epochs) == ("step", 0.3, 2)
    assert phase.augment == "flip"


def test_epochs_of_a_phase_go_before_steps_from_above() -> None:
    own, inherited = phases(
        "steps=100",
        "phases=[{name: own, train: full, epochs: 3}, {name: inherited, train: full}]",
    )
    assert (own.epochs, own.steps) == (3, None)
    assert inherited.steps == 100


def test_steps_of_a_phase_go_before_epochs_from_above() -> None:
    (phase,) = phases("epochs=5", "phases=[{train: full, steps: 7}]")
    assert phase.steps == 7


def test_phases_without_names_are_numbered() -> None:
    found = phases("phases=[{train: head}, {train: full, name: x}, {train: full}]")
    assert [phase.name for phase in found] == ["phase1", "x", "phase3"]


def test_two_phases_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two phases have one name: a, a"):
        phases("phases=[{train: head, name: a}, {train: full, name: a}]")
