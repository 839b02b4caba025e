"""Progress in words: pure functions from metrics to the text that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

# What people call the usual metrics, how many digits help them, and when a narrow terminal leaves
# them out.
_SHOWN = {
    "train/loss": ("loss", "{:#.4g}", 1),
    "train/accuracy": ("acc", "{:.3f}", 0),
    "val/loss": ("val loss", "{:#.4g}", 4),
    "val/accuracy": ("val acc", "{:.3f}", 1),
    "val/macro_f1": ("val f1", "{:.3f}", 1),
    "val/balanced_accuracy": ("val bal acc", "{:.3f}", 1),
    "target/im": ("target im", "{:.3f}", 2),
    "target/snd": ("target snd", "{:.3f}", 2),
    "target/entropy": ("target entropy", "{:.3f}", 2),
    "oracle/accuracy": ("oracle acc", "{:.3f}", 3),
    "lr": ("lr", "{:.1e}", 5),
}
_IF_CHOSEN = ("val/macro_f1", "val/balanced_accuracy", "target/snd", "target/entropy")


@dataclass(frozen=True)
class Part:
    """A piece of a line, which is shown whole or not at all."""

    text: str
    rank: int = 0
    """where there is no room, what has the highest is left out first"""
    style: str = ""


GAP = "  "


def width_of(parts: Sequence[Part]) -> int:
    """In columns, with the gaps between them."""
    return cell_len(GAP.join(part.text for part in parts))


def fitting(parts: Sequence[Part], width: int) -> list[Part]:
    """The parts that fit into ``width`` columns, in their order; at least one."""
    kept = list(parts)
    while len(kept) > 1 and width_of(kept) > width:
        del kept[max(range(len(kept)), key=lambda i: (kept[i].rank, i))]
    return kept


def is_evaluation(metrics: Mapping[str, Any]) -> bool:
    """Whether a line of metrics comes from an evaluation."""
    return any(key.startswith(("val/", "target/")) for key in metrics)


def where(metrics: Mapping[str, Any], step: int, total: int) -> list[Part]:
    """Step, phase and epoch."""
    parts = [Part(f"step {step}/{total}")]
    if "phase" in metrics:
        parts.append(Part(f"phase {metrics['phase']}", 6))
    if "epoch" in metrics:
        epoch = metrics["epoch"]
        parts.append(Part(f"epoch {epoch:g}" if isinstance(epoch, float) else f"epoch {epoch}", 7))
    return parts


def values(metrics: Mapping[str, Any], chosen: str = "") -> list[Part]:
    """The usual metrics, and the one that chooses the best, in a fixed order, by name."""
    return [
        Part(f"{name} {form.format(metrics[key])}", 0 if key == chosen else rank)
        for key, (name, form, rank) in _SHOWN.items()
        if isinstance(metrics.get(key), int | float) and (key == chosen or key not in _IF_CHOSEN)
    ]


def names_shown(chosen: str) -> list[str]:
    """The metrics of an evaluation that people look at, and the chosen one."""
    return [
        key
        for key in _SHOWN
        if (key == chosen or key not in _IF_CHOSEN) and key != "lr" and not key.startswith("train/")
    ]


def name_of(metric: str) -> str:
    """What people call it."""
    return _SHOWN[metric][0]


def best(metric: str, value: float | int) -> str:
    """The best value of a metric so far; it is that of the accuracy unless it has a name."""
    name, form, _ = _SHOWN[metric]
    return f"best {'' if metric == 'val/accuracy' else f'{name} '}{form.format(value)}"


def speed(metrics: Mapping[str, Any]) -> list[Part]:
    """Images per second, if known."""
    rate = metrics.get("images_per_second")
    if not isinstance(rate, int | float):
        return []
    return [Part(f"{rate:,.0f} img/s" if rate >= 10 else f"{rate:.1f} img/s", 3)]


def duration(seconds: float) -> str:
    """``0:42``, ``12:03`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
