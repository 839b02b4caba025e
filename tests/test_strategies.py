"""What each strategy of several phases, or of a network and its data, stands for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.arguments import Loaded, load, spell_out
from tl.config import Phase
from tl.errors import UserError
from tl.phases import STRATEGIES
from tl.strategies import Facts

RESNET = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
NORMS = dict(zip(RESNET, (0.1, 0.3, 0.7, 0.2, 0.5, 9.0), strict=True))
FACTS = Facts(
    stages=RESNET,
    is_transformer=False,
    is_pretrained=True,
    image_size=224,
    pretrained_size=224,
    classes=2,
    train_images=244,
    gradient_norms=lambda: NORMS,
)


def loaded(*overrides: str, **facts: Any) -> Loaded:
    """A run with its phases, whatever the strategy had to know for them."""
    first = load(None, overrides, environ={})
    return first if first.later is None else spell_out(first, replace(FACTS, **facts))


def phases(*overrides: str, **facts: Any) -> tuple[Phase, ...]:
    return loaded(*overrides, **facts).phases


def of_each(found: tuple[Phase, ...], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(phase, key) for key in keys) for phase in found]


def test_lp_ft_probes_on_the_view_of_validation_and_then_tunes_everything_slower() -> None:
    probe, tune = phases("strategy=lp_ft", "epochs=25", "optimizer.lr=0.003", "augment=trivial")
    assert (probe.name, probe.train, probe.augment, probe.epochs) == ("probe", "head", "none", 12)
    assert (tune.name, tune.train, tune.augment, tune.epochs) == ("tune", "full", "trivial", 13)
    assert (probe.optimizer.lr, tune.optimizer.lr) == (0.003, 0.0003)
    assert phases("strategy=lp_ft(4)", "optimizer.lr=0.1")[1].optimizer.lr == 0.025


def test_bottleneck_tunes_the_last_two_stages_slower() -> None:
    probe, tune = phases("strategy=bottleneck", "steps=9", "optimizer.lr=0.1")
    assert (probe.train, probe.augment, probe.steps) == ("head", "none", 4)
    assert (tune.train, tune.optimizer.lr, tune.steps) == ("last_stages(2)", 0.01, 5)


def test_discriminative_divides_the_rate_by_its_factor_for_each_stage() -> None:
    (phase,) = phases("strategy=discriminative")
    assert (phase.train, phase.optimizer.layer_decay) == ("full", 1 / 2.6)
    assert phases("strategy=discriminative(4)")[0].optimizer.layer_decay == 0.25


def test_layer_decay_multiplies_it() -> None:
    (phase,) = phases("strategy=layer_decay(0.65)", "optimizer.lr=0.5")
    assert (phase.train, phase.optimizer.layer_decay, phase.optimizer.lr) == ("full", 0.65, 0.5)
    assert phases("strategy=layer_decay")[0].optimizer.layer_decay == 0.75


def test_gradual_goes_from_the_head_to_the_images_stage_by_stage() -> None:
    found = phases("strategy=gradual(1)", "epochs=13")
    assert of_each(found, "name", "train", "epochs") == [
        ("gradual1", "head", 2),
        ("gradual2", "from_stage(layer4)", 2),
        ("gradual3", "from_stage(layer3)", 2),
        ("gradual4", "from_stage(layer2)", 2),
        ("gradual5", "from_stage(layer1)", 2),
        ("gradual6", "full", 3),
    ]
    found = phases("strategy=gradual(2)", "steps=10")
    assert of_each(found, "train", "steps") == [
        ("head", 2), ("from_stage(layer3)", 2), ("from_stage(layer1)", 2), ("full", 4),
    ]  # fmt: skip


@given(st.integers(1, 60), st.integers(2, 200))
def test_gradual_without_a_number_has_the_most_phases_that_get_an_epoch_each(
    num_stages: int, epochs: int
) -> None:
    stages = tuple(f"s{i}" for i in range(num_stages))
    found = phases("strategy=gradual", f"epochs={epochs}", stages=stages)
    firsts = [0 if p.train == "full" else num_stages - 1 for p in (found[0], found[-1])]
    assert firsts == [num_stages - 1 if num_stages > 1 else 0, 0]
    assert sum(phase.epochs for phase in found) == epochs
    assert all(phase.epochs >= 1 for phase in found)
    # One stage fewer in each phase, and there would be more phases than epochs.
    n = max(1, math.ceil((num_stages - 1) / (epochs - 1)))
    assert len(found) == 1 + math.ceil((num_stages - 1) / n)
    if n > 1:
        assert 1 + math.ceil((num_stages - 1) / (n - 1)) > epochs


def test_more_phases_than_epochs_are_refused_with_what_would_have_worked() -> None:
    with pytest.raises(UserError) as caught:
        phases("strategy=gradual(1)", "epochs=4")
    assert "has 6 phases for 6 stages, and epochs=4: give epochs=6, or gradual(2)" in str(
        caught.value
    )
    assert "(command line: strategy=gradual(1))" in str(caught.value)
    assert len(phases("strategy=gradual(1)", "epochs=6")) == 6
    assert len(phases("strategy=gradual(2)", "epochs=4")) == 4
    with pytest.raises(UserError, match=r"steps=1: give steps=2 \(command"):
        phases("strategy=gradual", "steps=1")


def test_surgical_trains_the_named_stage_or_that_of_the_highest_gradient_but_the_head() -> None:
    assert phases("strategy=surgical(layer3)")[0].train == "surgical(layer3)"
    for strategy in ("surgical", "surgical(auto)"):
        found = loaded(f"strategy={strategy}")
        assert found.phases[0].train == "surgical(layer2)"
        assert found.decided["measured"] == NORMS
        assert found.decided["strategy"] == strategy
        assert "layer2 has the highest" in found.decided["why"]


def test_only_surgical_measures_gradients() -> None:
    def measured() -> dict[str, float]:
        raise AssertionError("it did")

    for strategy in ("gradual", "auto", "surgical(layer1)"):
        phases(f"strategy={strategy}", gradient_norms=measured)


@pytest.mark.parametrize(
    ("facts", "chosen", "why"),
    [
        ({"is_pretrained": False}, "full", "the weights are random"),
        ({"train_images": 10}, "head", "10 training images are 5 or fewer a class"),
        ({"train_images": 11}, "lp_ft", "11 training images are under 20,000"),
        ({"image_size": 111}, "full", "images of 111 pixels"),
        ({"image_size": 112}, "lp_ft", "244 training images"),
        ({"train_images": 19_999}, "lp_ft", "under 20,000"),
        ({"train_images": 20_000}, "full", "20,000 training images are 20,000 or more"),
        ({"is_transformer": True}, "layer_decay(0.75)", "transformer"),
        ({"is_transformer": True, "train_images": 30_000}, "layer_decay(0.75)", "transformer"),
    ],
)
def test_auto_says_which_rule_fired_and_is_that_strategy(
    facts: dict[str, Any], chosen: str, why: str
) -> None:
    found = loaded("strategy=auto", "epochs=7", **facts)
    assert found.decided["why"].startswith(f"auto: {chosen}, as ")
    assert why in found.decided["why"]
    assert found.phases == phases(f"strategy={chosen}", "epochs=7")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("duration", ["epochs=1", "epochs=11", "steps=11"])
def test_every_strategy_makes_valid_phases_that_keep_to_the_duration(
    name: str, duration: str
) -> None:
    if name == "gradual" and duration == "epochs=1":
        duration = "epochs=6"
    key, _, total = duration.partition("=")
    found = phases(f"strategy={name}", duration)
    assert len({phase.name for phase in found}) == len(found)
    length = sum(getattr(phase, key) for phase in found)
    assert length == max(int(total), len(found))  # a phase has one at least


@pytest.mark.parametrize(
    ("strategy", "mend"),
    [
        ("layer_decay(2)", r"not above 1, such as layer_decay\(0.75\)"),
        ("layer_decay(0)", "above 0"),
        ("layer_decay(nan)", "above 0"),
        ("layer_decay()", "above 0"),
        ("discriminative(0.5)", r"1 or more .* such as discriminative\(2.6\)"),
        ("lp_ft(fast)", r"such as lp_ft\(10\)"),
        ("bottleneck(inf)", r"such as bottleneck\(10\)"),
        ("gradual(0)", r"such as gradual\(2\)"),
        ("gradual(1.5)", r"such as gradual\(2\)"),
        ("auto(fast)", "takes no argument"),
    ],
)
def test_a_wrong_argument_is_said_with_its_place_before_torch_is_imported(
    strategy: str, mend: str
) -> None:
    with pytest.raises(UserError, match=rf"{mend}.*\(command line: strategy="):
        load(None, [f"strategy={strategy}"], environ={})


# ------------------------------------------------ phases that come when network and data are known


LATER = ["gradual", "gradual(2)", "surgical", "auto"]


@pytest.mark.parametrize("strategy", LATER)
def test_a_resolved_config_spells_them_out_and_loads_to_the_same(
    tmp_path: Path, strategy: str
) -> None:
    first = loaded(f"strategy={strategy}", "epochs=9", "optimizer.lr=0.25", "phases.0.augment=flip")
    (tmp_path / "config.yaml").write_text(first.to_yaml())
    again = load(tmp_path / "config.yaml", [], environ={})
    assert again.later is None
    assert (again.config, again.phases) == (first.config, first.phases)
    assert again.config.strategy is None
    assert first.phases[0].augment == "flip"
    # What a phase has not itself is still the run's.
    third = load(tmp_path / "config.yaml", ["clip_norm=7"], environ={})
    assert {phase.clip_norm for phase in third.phases} == {7.0}


def test_before_that_a_run_has_none_and_its_overrides_wait() -> None:
    waiting = load(None, ["strategy=gradual(5)", "phases.1.steps=3", "epochs=2"], environ={})
    assert waiting.phases == ()
    head, rest = spell_out(waiting, FACTS).phases
    assert (head.epochs, rest.steps) == (1, 3)
    assert waiting.tree["strategy"] == "gradual(5)", "it may be spelled out again"
    assert len(spell_out(waiting, FACTS).phases) == 2
    too_far = load(None, ["strategy=gradual(5)", "phases.2.steps=3"], environ={})
    with pytest.raises(UserError, match="phases has 2 items"):
        spell_out(too_far, FACTS)


def test_a_strategy_from_outside_may_wait_for_the_facts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "later_from_outside.py").write_text(
        "from tl.strategies import Spelled\n"
        "def middle(argument, training):\n"
        "    def spelled(facts):\n"
        "        stage = facts.stages[len(facts.stages) // 2]\n"
        "        return Spelled([{'name': 'a', 'train': f'surgical({stage})'}], 'the middle')\n"
        "    return spelled\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = loaded("strategy=later_from_outside:middle")
    assert found.phases == (Phase(name="a", train="surgical(layer3)"),)
