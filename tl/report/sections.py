"""The parts of a run's page, each as plain values for the template; None where there is nothing.

What the best model says of the validation images is in `tl.report.answers`.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from tl.report.advice import in_words, trained_share
from tl.report.charts import Chart, Series, chart
from tl.report.numbers import wilson
from tl.report.pictures import Pictures
from tl.report.record import Record, is_number
from tl.report.svg import drawing, tag, text

NAMES = {
    "val/accuracy": "validation accuracy",
    "val/loss": "validation loss",
    "val/macro_f1": "macro F1",
    "val/balanced_accuracy": "balanced accuracy",
    "target/im": "information maximisation on the target",
    "target/snd": "neighbourhood density on the target",
    "target/entropy": "entropy on the target",
    "oracle/accuracy": "accuracy on the target, by its labels",
}


def verdict(record: Record) -> dict[str, Any] | None:
    """The number that a run is judged by, best and last, with what chance leaves open."""
    best, last = record.best, record.last
    metric = "val/accuracy" if "val/accuracy" in best else record.metric
    if metric not in best:
        return None
    is_share = metric.endswith(("accuracy", "f1"))
    found: dict[str, Any] = {
        "name": NAMES.get(metric, metric),
        "is_share": is_share,
        "best": best[metric],
        "step": int(best.get("step", 0)),
        "last": last.get(metric, record.summary.get(f"last/{metric}")),
        "chosen_by": NAMES.get(record.metric, record.metric) if record.metric != metric else None,
        "interval": None,
    }
    n = record.facts.get("val_images")
    if metric == "val/accuracy" and record.validation is not None:
        n = record.validation.images
    if metric == "val/accuracy" and is_number(n) and n:
        interval = wilson(round(best[metric] * n), int(n))
        found |= {
            "interval": interval,
            "images": int(n),
            "bar": interval_bar(best[metric], interval),
        }
    return found


def interval_bar(value: float, interval: tuple[float, float], key: str = "interval") -> Markup:
    """A share between 0 and 1 and its confidence interval."""
    low, high = interval
    width = 300.0
    parts = [
        tag("rect", x=0.0, y=6.0, width=width, height=8.0, rx=4, class_="scale"),
        tag("rect", x=low * width, y=6.0, width=max(2.0, (high - low) * width), height=8.0, rx=4,
            class_="interval"),
        tag("rect", x=min(width - 4, max(0.0, value * width - 2)), y=1.0, width=4.0, height=18.0,
            class_="value"),
        text(0, 34, "0 %", "tick"),
        text(width, 34, "100 %", "tick", text_anchor="end"),
    ]  # fmt: skip
    about = f"{value:.1%}, with 95 % confidence between {low:.1%} and {high:.1%}"
    return drawing(width, 38, "Confidence interval", about, parts, key, class_="intervalbar")


PHASE_KEYS = [
    ("train", "trains"),
    ("share", "of all parameters"),
    ("objective", "objective"),
    ("steps", "steps"),
    ("batch", "images a step"),
    ("optimizer", "optimizer"),
    ("lr", "base learning rate"),
    ("schedule", "schedule"),
    ("augment", "augmentation"),
]


def phase_rows(record: Record) -> list[dict[str, Any]]:
    """The phases as a table of `PHASE_KEYS`."""
    return [
        {
            "name": phase["name"],
            "train": phase["train"],
            "objective": phase.get("objective", ""),
            "optimizer": phase.get("optimizer", {}).get("name", ""),
            "lr": phase.get("optimizer", {}).get("lr"),
            "schedule": phase.get("schedule", {}).get("name", ""),
            "augment": phase.get("augment", ""),
            "steps": f"{phase['steps_of_it']:,}",
            "batch": phase.get("global_batch_size"),
            "share": in_words(trained_share(phase)),
        }
        for phase in record.phases
    ]


def starts_of(record: Record) -> list[tuple[str, float]]:
    """The phases, and the step that each begins after."""
    if record.phases:
        return [(phase["name"], float(phase["first_step"])) for phase in record.phases]
    found: dict[str, float] = {}
    for line in record.lines:
        if isinstance(line.get("phase"), str):
            found.setdefault(line["phase"], max(0.0, line["step"] - 1.0) if found else 0.0)
    return list(found.items())


def curves(record: Record) -> list[Chart]:
    """Loss, accuracy, learning rate and throughput."""
    phases, best = starts_of(record), record.best.get("step")
    of = record.curve

    def pair(metric: str) -> list[Series]:
        return [
            Series("training, as augmented", without_short(of(f"train/{metric}")), 0),
            Series("validation", of(f"val/{metric}"), 1, marked=True),
        ]

    wanted = [
        chart("loss", "Loss", pair("loss"), phases, "Cross-entropy on validation images; what the "
              "objective minimises on training images.", best=best),
        chart("accuracy", "Accuracy", pair("accuracy"), phases, "Training lines are means "
              "since the line before.", best=best),
        chart("lr", "Learning rate", [Series("base rate", of("lr"), 2)], phases,
              "Before layer_decay and head_factor.", from_zero=True),
        chart("throughput", "Throughput", [Series("images a second", of("images_per_second"), 3)],
              phases, "In training, over all processes.", from_zero=True),
    ]  # fmt: skip
    return [one for one in wanted if one is not None]


def without_short(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A curve of means since the point before, with those of few steps added to the one before.

    An evaluation cuts the steps between two lines: its own line may be of a single batch.
    """
    spans = [x - before for (x, _), (before, _) in zip(points, [(0.0, 0.0), *points], strict=False)]
    least = 0.5 * max(spans, default=0.0)
    found: list[tuple[float, float]] = []
    spans_found: list[float] = []
    for (x, y), span in zip(points, spans, strict=True):
        if found and 0 < span < least:
            whole = spans_found[-1] + span
            y = (found[-1][1] * spans_found[-1] + y * span) / whole
            found[-1], spans_found[-1] = (x, y), whole
        else:
            found.append((x, y))
            spans_found.append(span)
    return found


def adaptation(record: Record) -> list[Chart]:
    """What is known of the target without its labels."""
    phases, best = starts_of(record), record.best.get("step")
    notes = {
        "target/im": "Higher is better: predictions that are sure and of all classes.",
        "target/snd": "Higher is better: neighbours that agree.",
        "target/entropy": "Mean entropy of the predictions, in nats.",
    }
    found = [
        chart(name.replace("/", "-"), NAMES[name].capitalize(),
              [Series(NAMES[name], record.curve(name), i + 2, marked=True)], phases, note,
              best=best)
        for i, (name, note) in enumerate(notes.items())
    ]  # fmt: skip
    own = sorted({key for line in record.lines for key in line if key.startswith("train/")})
    known = ("train/loss", "train/accuracy")
    parts = [
        Series(name.removeprefix("train/"), record.curve(name), i)
        for i, name in enumerate(key for key in own if key not in known)
    ]
    alone = f"The term {parts[0].name}." if len(parts) == 1 else ""  # of one there is no legend
    found.append(chart("objective", "Parts of the objective", parts[:8], phases, alone))
    return [one for one in found if one is not None]


def oracle(record: Record) -> dict[str, Any] | None:
    """What the target's labels say, which nothing was chosen by unless a user wanted it."""
    accuracy = record.curve("oracle/accuracy")
    if not accuracy:
        return None
    return {
        "best": record.best.get("oracle/accuracy"),
        "last": accuracy[-1][1],
        "chart": chart(
            "oracle-accuracy", "Accuracy on the target, by its labels",
            [Series("target", accuracy, 5, marked=True)], starts_of(record),
            best=record.best.get("step"),
        ),
    }  # fmt: skip


def augmentation(record: Record, pictures: Pictures) -> list[dict[str, Any]]:
    """What training sees, of each phase that augments in another way than those before it."""
    seed = record.config.get("seed", 0)
    if not isinstance(seed, int):
        return []
    found, seen = [], set()
    augments = [phase for phase in record.phases if phase.get("augment") != "none"]
    for phase in augments or record.phases[:1]:
        how = (phase.get("augment"), str(phase.get("crop_scale")))
        if how in seen:
            continue
        seen.add(how)
        images = pictures.augmented(phase, seed)
        if images:
            mixes = (phase.get("mixup") or 0) > 0 or (phase.get("cutmix") or 0) > 0
            found.append({"phase": phase, "images": images, "mixes": mixes})
    return found[:3]


def time_and_memory(record: Record) -> dict[str, Any]:
    """Where the time went, and who held how much."""
    times, total = record.times, record.seconds
    rows = [(f"training, phase {name}", value) for name, value in times.training.items() if value]
    words = {
        "evaluation": "evaluation",
        "features": "features of the frozen prefix",
        "checkpoint": "copying checkpoints",
        "report": "this report",
    }
    rows += [(what, times.seconds[key]) for key, what in words.items() if times.seconds.get(key)]
    if total and rows:
        rest = total - sum(value for _, value in rows)
        rows.append(("start, reading data and weights, saving", max(0.0, rest)))
    whole = sum(value for _, value in rows) or 1.0
    memory = [
        row for row in times.memory if is_number(row.get("rank")) and is_number(row.get("bytes"))
    ]
    return {
        "rows": [(what, value, value / whole) for what, value in rows],
        "bar": _time_bar([(what, value / whole) for what, value in rows]) if rows else None,
        "first_step": record.summary.get("seconds_to_first_step") or times.first_step,
        "attempts": times.attempts,
        "memory": memory,
        "on_gpu": any("gpu_bytes" in row for row in memory),
        "device": record.facts.get("device"),
        "versions": record.facts.get("versions", {}),
    }


def _time_bar(shares: list[tuple[str, float]]) -> Markup:
    width, x, parts = 700.0, 0.0, []
    for i, (what, share) in enumerate(shares):
        says = tag("title", f"{what}: {share:.0%}")
        wide = share * width
        parts.append(
            tag(
                "rect",
                says,
                x=x,
                y=0.0,
                width=max(0.0, wide - 1),
                height=26.0,
                class_=f"part f{i % 8}",
            )
        )
        if wide > 40:
            parts.append(text(x + wide / 2, 18, f"{i + 1}", "onpart", text_anchor="middle"))
        x += wide
    about = "; ".join(f"{i}: {what}, {share:.0%}" for i, (what, share) in enumerate(shares, 1))
    return drawing(width, 26, "Where the time went", about, parts, "time-bar", class_="timebar")
