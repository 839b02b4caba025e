"""What to do next, by plain rules over the numbers of a run; docs/report.md lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tl.report.numbers import calibration, class_rows, wilson
from tl.report.pictures import named
from tl.report.record import Record, is_number

WIDE = 0.10
"""an interval of accuracy this wide tells few runs apart"""
GAP = 0.10
"""of accuracy between training and validation images"""
RISE = 1.10
"""a validation loss this many times its lowest has risen"""
MISCALIBRATED = 0.10
"""of expected calibration error"""
MOST = 3
"""of these are said at the top"""


@dataclass(frozen=True)
class Advice:
    """What the numbers say, and what to try."""

    finding: str
    advice: str


def advice(record: Record) -> list[Advice]:
    """What stands out, the most important first; at most `MOST`."""
    rules = (
        stopped, left_out, never_recognised, overfitting, underfitting,
        still_improving, overconfident, few_images,
    )  # fmt: skip
    found = [said for rule in rules if (said := rule(record)) is not None]
    return found[:MOST]


def stopped(record: Record) -> Advice | None:
    """The run is not done and does not go on."""
    if record.state not in ("failed", "preempted"):
        return None
    message = str(record.status.get("message", "")).strip()
    short = message if len(message) < 400 else f"{message[:400]} …"
    why = f": {short}" if short else ""
    done = "was stopped" if record.state == "preempted" else "failed"
    return Advice(
        f"The run {done} after step {record.status.get('step', record.steps)}{why}",
        "Go on from the last checkpoint with the same command and --resume auto.",
    )


def left_out(record: Record) -> Advice | None:
    """Images that could not be read, or steps that were not finite."""
    images, steps = record.summary.get("bad_images"), record.summary.get("left_out_steps")
    if is_number(steps) and steps:
        return Advice(
            f"{steps:,} steps had a loss or gradient that was not finite, and were left out.",
            "Lower the learning rate, or clip the gradient lower (clip_norm).",
        )
    if is_number(images) and images:
        return Advice(
            f"{images:,} images could not be read and were left out.",
            "The run's log names them; mend or remove them.",
        )
    return None


def never_recognised(record: Record) -> Advice | None:
    """A class of which not one validation image is recognised."""
    if record.validation is None:
        return None
    rows = class_rows(record.validation.confusion, len(record.classes))
    lost = [row for row in rows if row.images and not row.right]
    if not lost:
        return None
    names = ", ".join(named(record.classes, row.number) for row in lost[:3])
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return Advice(
        f"No validation image of {names}{more} is recognised.",
        "Look at the labels of these classes and at how many training images they have; "
        "sampling=balanced or class_weights=balanced gives rare ones more weight.",
    )


def overfitting(record: Record) -> Advice | None:
    """Training images are known much better than others, and the loss of others rises."""
    train = _last(record, "train/accuracy")
    val, losses = record.last.get("val/accuracy"), [v for _, v in record.curve("val/loss")]
    if train is None or val is None or len(losses) < 3:
        return None
    if train - val < GAP or losses[-1] < RISE * min(losses):
        return None
    return Advice(
        f"Over-fitting: at the end {train:.0%} of the training images are right and {val:.0%} of "
        f"the others, whose loss has risen to {losses[-1] / min(losses):.1f} times its lowest.",
        "Train less of the network or for fewer epochs (early_stopping.patience=3), augment more "
        "(augment=trivial, mixup=0.2), or regularize (weight_decay, objective=l2_sp).",
    )


def underfitting(record: Record) -> Advice | None:
    """Not even the training images are known, with most of the network frozen."""
    train, val = _last(record, "train/accuracy"), record.last.get("val/accuracy")
    if train is None or val is None or not record.phases:
        return None
    trained = max(trained_share(phase) for phase in record.phases)
    if train > 0.9 or train - val > 0.02 or trained > 0.5 or record.state != "done":
        return None
    return Advice(
        f"Only {train:.0%} of the training images are right (as augmented), and "
        f"{in_words(trained)} of the parameters are trained.",
        "Train more of the network: strategy=lp_ft or full, with a smaller learning rate.",
    )


def still_improving(record: Record) -> Advice | None:
    """The last evaluation is the best, and better than that before it by its loss as well."""
    losses = [v for _, v in record.curve("val/loss")]
    if record.state != "done" or len(losses) < 3 or not record.best:
        return None
    if record.best.get("step") != record.last.get("step") or losses[-1] > 0.99 * losses[-2]:
        return None
    return Advice(
        "The last evaluation is the best one, and its loss was still falling.",
        "Train longer: twice the epochs.",
    )


def overconfident(record: Record) -> Advice | None:
    """Probabilities that say too much, or too little, and by more than chance would."""
    found = record.validation and calibration(record.validation.seen.bins)
    if not found or record.validation is None:
        return None
    low, high = wilson(record.validation.right, record.validation.images)
    if found.ece < MISCALIBRATED or low <= found.confidence <= high:
        return None
    too = "sure" if found.confidence > found.accuracy else "careful"
    mend = "Smooth the labels (label_smoothing=0.1) or mix images (mixup=0.2)"
    if too == "careful":
        mend = "Train longer, or with less label_smoothing and mixup"
    return Advice(
        f"The model is too {too}: its mean confidence is {found.confidence:.0%} and "
        f"{found.accuracy:.0%} are right (calibration error {found.ece:.2f}).",
        f"{mend} before you go by its probabilities.",
    )


def few_images(record: Record) -> Advice | None:
    """So few validation images that chance moves the accuracy by much."""
    if record.validation is None:
        return None
    n = record.validation.images
    low, high = wilson(record.validation.right, n)
    if high - low < WIDE:
        return None
    return Advice(
        f"With {n:,} validation image{'s' if n > 1 else ''} the accuracy is known to within "
        f"{low:.0%} to {high:.0%} only.",
        "Compare runs over several seeds, or hold more images out, before you choose between them.",
    )


def trained_share(phase: dict[str, Any]) -> float:
    """The share of parameters that train in a phase."""
    total = sum(row["parameters"] for row in phase["stages"])
    return sum(row["trainable"] for row in phase["stages"]) / total if total else 0.0


def in_words(share: float) -> str:
    """``13%``; of a small one two digits: ``0.14%``."""
    return f"{share:.0%}" if share >= 0.1 or not share else f"{100 * share:.2g}%"


def _last(record: Record, metric: str) -> float | None:
    """The mean of the last tenth of a training metric's lines: a single one is of few images."""
    values = [value for _, value in record.curve(metric)]
    some = values[-max(1, len(values) // 10) :]
    return sum(some) / len(some) if some else None
