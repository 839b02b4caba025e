"""Progress in words: pure functions from metrics to the text that a person reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

# What people call the usual metrics, and how many digits help them.
_SHOWN = {
    "train/loss": ("loss", "{:#.4g}"),
    "train/accuracy": ("acc", "{:.3f}"),
    "val/loss": ("val loss", "{:#.4g}"),
    "val/accuracy": ("val acc", "{:.3f}"),
    "val/macro_f1": ("val f1", "{:.3f}"),
    "val/balanced_accuracy": ("val bal acc", "{:.3f}"),
    "target/im": ("target im", "{:.3f}"),
    "target/snd": ("target snd", "{:.3f}"),
    "target/entropy": ("target entropy", "{:.3f}"),
    "oracle/accuracy": ("oracle acc", "{:.3f}"),
    "lr": ("lr", "{:.1e}"),
}
_IF_CHOSEN = ("val/macro_f1", "val/balanced_accuracy", "target/snd", "target/entropy")


def is_evaluation(metrics: Mapping[str, Any]) -> bool:
    """Whether a line of metrics comes from an evaluation."""
    return any(key.startswith(("val/", "target/")) for key in metrics)


def where(metrics: Mapping[str, Any], step: int, total: int) -> list[str]:
    """Step, phase and epoch."""
    parts = [f"step {step}/{total}"]
    if "phase" in metrics:
        parts.append(f"phase {metrics['phase']}")
    if "epoch" in metrics:
        epoch = metrics["epoch"]
        parts.append(f"epoch {epoch:g}" if isinstance(epoch, float) else f"epoch {epoch}")
    return parts


def values(metrics: Mapping[str, Any], chosen: str = "") -> list[str]:
    """The usual metrics, and the one that chooses the best, in a fixed order, by name."""
    return [
        f"{name} {form.format(metrics[key])}"
        for key, (name, form) in _SHOWN.items()
        if isinstance(metrics.get(key), int | float) and (key == chosen or key not in _IF_CHOSEN)
    ]


def best(metric: str, value: float | int) -> str:
    """The best value of a metric so far; it is that of the accuracy unless it has a name."""
    name, form = _SHOWN[metric]
    return f"best {'' if metric == 'val/accuracy' else f'{name} '}{form.format(value)}"


def speed(metrics: Mapping[str, Any]) -> list[str]:
    """Images per second, if known."""
    rate = metrics.get("images_per_second")
    if not isinstance(rate, int | float):
        return []
    return [f"{rate:,.0f} img/s" if rate >= 10 else f"{rate:.1f} img/s"]


def duration(seconds: float) -> str:
    """``0:42``, ``12:03`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TimeLeft:
    """Estimates the time left from the speed of the last logged steps.

    Evaluations between them count, since more of them will come. A new phase starts afresh: a
    step of the head alone can be a hundred times faster than one of the whole network.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._phase: object = None
        self._seen: deque[tuple[int, float]] = deque(maxlen=20)

    def update(self, step: int, now: float, phase: object = None) -> None:
        """Note that ``step`` was reached at ``now`` (in seconds)."""
        if phase != self._phase:
            self._phase = phase
            self._seen.clear()
        self._seen.append((step, now))

    def seconds(self) -> float | None:
        """Seconds left, None while two steps have not been seen."""
        if not self._seen:
            return None
        (first, since), (last, now) = self._seen[0], self._seen[-1]
        if last <= first:
            return None
        return (self.total - last) * (now - since) / (last - first)
