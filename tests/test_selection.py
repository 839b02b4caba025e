"""Which evaluation is the best, and when a phase ends, by sequences that were written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.config import BestConfig, Config, EarlyStopping
from tl.selection import has_waited_enough, is_better, waited


def ends_after(
    values: list[float], patience: int | None, min_delta: float = 0.0, **best: str
) -> int | None:
    """How many evaluations a phase has; None if early stopping does not end it."""
    rule, chosen = EarlyStopping(patience=patience, min_delta=min_delta), BestConfig(**best)  # type: ignore[arg-type]
    reference, waits = None, 0
    for number, value in enumerate(values, start=1):
        reference, waits = waited(value, reference, waits, chosen, rule)
        if has_waited_enough(waits, rule):
            return number
    return None


@pytest.mark.parametrize(
    ("values", "patience", "ends"),
    [
        ([0.5, 0.6, 0.6, 0.55, 0.9], 2, 4),
        ([0.5, 0.6, 0.6, 0.61, 0.6, 0.6], 2, 6),
        ([0.5, 0.4, 0.3], 1, 2),
        ([0.5, 0.4, 0.45], 2, 3),  # better than the one before is not enough
        ([0.1, 0.2, 0.3], 1, None),
        ([0.5] * 9, None, None),
    ],
)
def test_a_phase_ends_after_as_many_evaluations_in_a_row_without_improvement(
    values: list[float], patience: int | None, ends: int | None
) -> None:
    assert ends_after(values, patience) == ends
    # The same upside down: of a loss less is better.
    assert ends_after([1 - value for value in values], patience, metric="val/loss") == ends
    assert ends_after([-value for value in values], patience, mode="min") == ends


def test_an_improvement_is_more_than_min_delta_over_the_best_that_counted() -> None:
    # Halves and quarters, so that the differences are exact.
    assert ends_after([0.5, 0.75, 1.0], 1, min_delta=0.25) == 2
    assert ends_after([0.5, 0.75, 1.0], 2, min_delta=0.25) is None  # 1.0 is 0.5 over 0.5
    assert ends_after([2.0, 1.75, 1.25], 1, min_delta=0.25, metric="val/loss") == 2


def of(accuracy: float, loss: float, f1: float = 0.5) -> dict[str, float]:
    return {"val/accuracy": accuracy, "val/loss": loss, "val/macro_f1": f1}


@pytest.mark.parametrize(
    ("evaluations", "best", "winner"),
    [
        ([of(0.5, 1), of(0.6, 2), of(0.6, 1.5), of(0.6, 1.5)], {}, 2),
        ([of(0.5, 1), of(0.6, 1), of(0.6, 1)], {"metric": "val/loss"}, 1),
        ([of(0.9, 1, 0.4), of(0.5, 1, 0.6), of(0.6, 1, 0.6)], {"metric": "val/macro_f1"}, 2),
        ([of(0.9, 1), of(0.5, 1), of(0.6, 1)], {"mode": "min"}, 1),
        ([of(0.9, 1), of(0.5, 3), of(0.6, 2)], {"metric": "val/loss", "mode": "max"}, 1),
    ],
)
def test_the_best_is_by_the_metric_then_lower_loss_then_accuracy_then_the_earlier(
    evaluations: list[dict[str, float]], best: dict[str, str], winner: int
) -> None:
    chosen, place = {}, -1
    rule = Config.model_validate({"best": best}).chosen_best
    for number, new in enumerate(evaluations):
        if is_better(new, chosen, rule):
            chosen, place = new, number
    assert place == winner


number = st.floats(0, 1)


@given(number, number, number, number)
def test_no_two_evaluations_are_each_better_than_the_other(
    a: float, b: float, c: float, d: float
) -> None:
    for metric in ("val/accuracy", "val/loss"):
        best = BestConfig(metric=metric)
        assert not (is_better(of(a, b), of(c, d), best) and is_better(of(c, d), of(a, b), best))
        assert not is_better(of(a, b), of(a, b), best)


@pytest.mark.parametrize(
    ("data", "metric", "chosen"),
    [
        ({}, "auto", "val/accuracy"),
        ({"root": "a", "source_domains": ["b", "c"]}, "auto", "val/accuracy"),
        ({"source_root": "a", "target_root": "b"}, "auto", "target/im"),
        ({"root": "a", "source_domains": ["b"], "target_domain": "c"}, "auto", "target/im"),
        ({"target_root": "b"}, "auto", "target/im"),
        ({"source_root": "a", "target_root": "b"}, "oracle/accuracy", "oracle/accuracy"),
        ({"source_root": "a", "target_root": "b"}, "val/loss", "val/loss"),
    ],
)
def test_auto_is_a_rule_that_needs_no_label_of_the_target(
    data: dict[str, Any], metric: str, chosen: str
) -> None:
    config = Config.model_validate({"data": data, "best": {"metric": metric}})
    assert config.chosen_best.metric == chosen
    assert config.chosen_best.mode == config.best.mode


def test_what_labels_of_the_target_say_decides_nothing_that_they_are_not_asked_for() -> None:
    """Not between two that are alike by the metric, either."""
    better = {"oracle/accuracy": 0.9, "oracle/loss": 0.1, "oracle/balanced_accuracy": 0.9}
    worse = {"oracle/accuracy": 0.1, "oracle/loss": 3.0, "oracle/balanced_accuracy": 0.1}
    same = {"target/im": 1.0, "target/snd": 2.0, "target/entropy": 0.5, **of(0.5, 1.0)}
    for metric in ("target/im", "target/snd", "target/entropy", "val/accuracy"):
        best = BestConfig.model_validate({"metric": metric})
        assert not is_better({**same, **better}, {**same, **worse}, best)
        free = {key: same[key] for key in same if key.startswith("target/")}
        if metric.startswith("target/"):  # of a model without its source there is no more
            assert not is_better({**free, **better}, {**free, **worse}, best)
            less, more = sorted([free, {**free, metric: 1.5}], key=lambda n: n[metric])
            if metric == "target/entropy":
                less, more = more, less
            assert is_better(more, less, best)
            assert not is_better(less, more, best)


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"patience": -1}, {"min_delta": -0.1}])
def test_patience_and_min_delta_have_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="greater than"):
        Config(early_stopping=wrong)  # type: ignore[arg-type]
