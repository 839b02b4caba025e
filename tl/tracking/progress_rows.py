"""The rows at the bottom of a terminal: a pure function of what a run has got to and a width.

    phase 2/3 layer4  epoch 7/12  step 310/600 ━━━━━━━━━━━━━────────────  0:42 left
    train  loss 0.2312  acc 0.861  lr 1.0e-03  312 img/s  memory 812 MB
    eval   val loss 0.4123  val acc 0.883  best 0.920 at step 300

In a narrow terminal parts are left out, in the first row the bar, the epoch, the phase, what is
going on and the step; in the second the learning rate, the memory, images per second and the loss;
in the third the step of the best, the loss, the accuracy by the target's labels and what else was
not chosen to go by. Time left, accuracy and the best stay to the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from tl.tracking.plan import PhasePlan, place_after
from tl.tracking.progress_line import (
    GAP,
    Part,
    best,
    duration,
    fitting,
    is_evaluation,
    speed,
    values,
    width_of,
)
from tl.tracking.tracker import Metrics

FEWEST_OF_BAR, MOST_OF_NAME = 8, 24
STARTING, EVALUATING = "starting", "evaluating"
FULL, EMPTY = "━", "─"
"""of the bar, which is to be read without colours as well"""


@dataclass
class Shown:
    """How far a run has come, as its display knows it."""

    phases: Sequence[PhasePlan]
    step: int = 0
    """steps done"""
    chosen: str = "val/accuracy"
    """the metric of the best"""
    best: Mapping[str, float | int] = field(default_factory=dict)
    """metrics of the best evaluation, and its step; nothing if there was none"""
    training: Metrics = field(default_factory=dict)
    """the last line of it"""
    evaluation: Metrics = field(default_factory=dict)
    memory: str = ""
    doing: str = STARTING
    """nothing while it trains"""
    seconds_left: float | None = None
    is_sure: bool = True
    """of the seconds left"""


def progress_rows(shown: Shown, width: int) -> list[Text]:
    """Three texts, each of one row of at most ``width`` columns."""
    label = Part("train", 2, "bold"), Part("eval ", 2, "bold")
    training = [
        label[0],
        *values({k: v for k, v in shown.training.items() if not is_evaluation({k: v})}),
        *speed(shown.training),
        *([Part(shown.memory, 4)] if shown.memory else []),
    ]
    evaluation = [label[1], *values(shown.evaluation, shown.chosen)]
    if shown.best:
        text = best(shown.chosen, shown.best[shown.chosen])
        long = [*evaluation, Part(f"{text} at step {shown.best['step']}", -1, "green")]
        evaluation.append(Part(text, -1, "green"))
        evaluation = long if width_of(long) <= width else evaluation
    elif not shown.evaluation:
        evaluation.append(Part("none yet"))
    return [_first_row(shown, width), _row(training, width), _row(evaluation, width)]


def _first_row(shown: Shown, width: int) -> Text:
    # An evaluation belongs to the step before it, and may be the last thing in a phase.
    here = place_after(shown.phases, shown.step - (shown.doing == EVALUATING))
    name = shown.phases[here.index].name
    name = name if len(name) <= MOST_OF_NAME else f"{name[: MOST_OF_NAME - 1]}…"
    number = f"{here.index + 1}/{len(shown.phases)} " if len(shown.phases) > 1 else ""
    total = sum(phase.steps for phase in shown.phases)
    epochs = sum(phase.epochs(phase.steps) for phase in shown.phases)
    parts = [
        Part(f"phase {number}{name}", 3, "bold"),
        Part(f"epoch {here.epoch}/{epochs}", 4),
        Part(f"step {shown.step}/{total}", 1),
    ]
    if shown.doing:
        parts.append(Part(shown.doing, 2, "italic"))
    if shown.seconds_left is not None:
        about = "" if shown.is_sure else "~"
        parts.append(Part(f"{about}{duration(shown.seconds_left)} left"))
    kept = fitting(parts, width)
    room = width - width_of(kept) - len(GAP)
    if len(kept) < len(parts) or room < FEWEST_OF_BAR:
        return _row(kept, width)
    full = round(room * min(1.0, shown.step / max(total, 1)))
    bar = Text.assemble((FULL * full, "cyan"), (EMPTY * (room - full), "dim"))
    rest = [_row(kept[3:], width)] if kept[3:] else []
    return Text(GAP).join([_row(kept[:3], width), bar, *rest])


def _row(parts: Sequence[Part], width: int) -> Text:
    texts = (Text(part.text, style=part.style) for part in fitting(parts, width))
    row = Text(GAP).join(texts)
    row.truncate(width, overflow="ellipsis")
    return row
