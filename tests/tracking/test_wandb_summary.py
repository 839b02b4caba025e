"""The summary of a run in W&B is of its best model, whatever is chosen by and whenever it stops."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tl.config import BestConfig
from tl.selection import is_better
from tl.tracking.wandb_summary import BestSoFar, summary_of

ACCURACY = BestConfig(metric="val/accuracy").model_dump()
LOSS = BestConfig(metric="val/loss").model_dump()
values = st.tuples(st.floats(0, 1), st.floats(0, 5))


def rows(evaluations: list[tuple[float, float]]) -> list[tuple[int, dict[str, float]]]:
    found = []
    for step, (accuracy, loss) in enumerate(evaluations):
        found.append((step * 100, {"step": step, "train/loss": loss}))
        found.append((step * 100 + 1, {"step": step, "val/accuracy": accuracy, "val/loss": loss}))
    return found


def test_the_best_is_one_model_and_not_the_best_of_each_metric() -> None:
    evaluations = [(0.5, 2.0), (0.9, 3.0), (0.8, 1.0)]
    by_accuracy = summary_of(rows(evaluations), ACCURACY)
    assert by_accuracy == {
        "val/accuracy": 0.9, "val/loss": 3.0, "best_step": 1, "best_metric": "val/accuracy",
        "last/val/accuracy": 0.8, "last/val/loss": 1.0,
    }  # fmt: skip
    assert summary_of(rows(evaluations), LOSS)["best_step"] == 2


@given(st.lists(values, min_size=1, max_size=8), st.sampled_from([ACCURACY, LOSS]))
def test_it_is_the_one_that_the_run_itself_would_keep(
    evaluations: list[tuple[float, float]], chosen: dict[str, str]
) -> None:
    best: dict[str, float] = {}
    for step, (accuracy, loss) in enumerate(evaluations):
        new = {"val/accuracy": accuracy, "val/loss": loss}
        if is_better(new, best, BestConfig(**chosen)):
            best = {**new, "best_step": step}
    summary = summary_of(rows(evaluations), chosen)
    assert {key: summary[key] for key in best} == best


def test_a_line_of_training_and_a_value_that_is_none_change_nothing() -> None:
    best = BestSoFar(ACCURACY)
    assert best.after({"step": 1, "train/loss": 0.5, "lr": 0.1}) == {}
    assert best.after({"step": 1, "val/accuracy": math.nan, "val/loss": 0.5}) == {}
    assert summary_of([], ACCURACY) == {}
