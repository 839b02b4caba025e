"""Which of two evaluations is the better one, and when a phase has stopped to get better.

Plain functions of numbers that are the same on every process, so that all decide alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from tl.config import BestConfig, EarlyStopping

Numbers = Mapping[str, int | float]

LOW_IS_GOOD = ("val/loss", "target/entropy")


def sign_of(best: BestConfig) -> int:
    """1 if more of the metric is better, -1 if less is."""
    if best.mode == "auto":
        return -1 if best.metric in LOW_IS_GOOD else 1
    return 1 if best.mode == "max" else -1


def is_better(new: Numbers, old: Numbers, best: BestConfig) -> bool:
    """Whether an evaluation takes the place of the best one; ``old`` is empty if there is none.

    Of two with the same value of the metric the one with the lower loss is better, then the one
    with the higher accuracy, then the earlier one.
    """
    return not old or _rank(new, best) > _rank(old, best)


def _rank(numbers: Numbers, best: BestConfig) -> tuple[float, float, float]:
    chosen = sign_of(best) * numbers[best.metric]
    # Of a model without its source there are no such.
    return chosen, -numbers.get("val/loss", 0.0), numbers.get("val/accuracy", 0.0)


def waited(
    new: float, reference: float | None, waits: int, best: BestConfig, rule: EarlyStopping
) -> tuple[float, int]:
    """The value that the next evaluations of a phase have to surpass, and how many have not.

    An evaluation counts as an improvement if it is better than ``reference`` (None: it is the
    phase's first) by more than ``min_delta``; the same value again is none.
    """
    if reference is None or sign_of(best) * (new - reference) > rule.min_delta:
        return new, 0
    return reference, waits + 1


def has_waited_enough(waits: int, rule: EarlyStopping) -> bool:
    """Whether early stopping ends the phase."""
    return rule.patience is not None and waits >= rule.patience
