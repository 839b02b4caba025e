"""The page of several runs: what differs, and whether it mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tl.atomic import to_json, write_text_atomically
from tl.mistakes import dotted
from tl.report.charts import Chart, Series, chart, sample
from tl.report.numbers import class_rows, sign_test
from tl.report.page import render
from tl.report.pictures import Pictures, named
from tl.report.record import Record
from tl.report.sections import interval_bar, verdict, without_short
from tl.report.seen import UNIT

MOST_CLASSES, MOST_IMAGES, MOST_KEYS = 60, 18, 60
NOISE = 0.05
"""a difference that chance makes at least this often is called noise"""
NOT_ASKED = ("run_dir", "tracking", "threads", "num_processes", "time_limit", "hang_timeout")
"""keys in which runs differ without being other runs"""


@dataclass(frozen=True)
class Answers:
    """What a run called the images that are compared, by the name of each."""

    called: Mapping[str, tuple[str, str, float]]
    """label, what it was called, and with which confidence"""
    positions: Mapping[str, int]


def write_comparison(records: Sequence[Record], pictures: Sequence[Pictures], path: Path) -> None:
    """Write the page that compares runs to ``path``."""
    write_text_atomically(path, render("comparison.html", comparison(records, pictures)))


def comparison(records: Sequence[Record], pictures: Sequence[Pictures]) -> dict[str, Any]:
    """What the template is given. Runs are called by their folders' names, if these differ."""
    names = _names(records)
    answers = [answers_of(record) for record in records]
    common = _common(answers)
    return {
        "runs": [_row(*both, i) for i, both in enumerate(zip(names, records, strict=True))],
        "differences": differences([record.config for record in records]),
        "names": names,
        "charts": _charts(names, records),
        "recall": _recall(records),
        "tests": _tests(names, answers, common),
        "compared": len(common),
        "disagreements": _disagreements(names, answers, common, pictures),
        "missing": [(n, line) for n, r in zip(names, records, strict=True) for line in r.missing],
    }


def _names(records: Sequence[Record]) -> list[str]:
    short = [record.name for record in records]
    return short if len(set(short)) == len(short) else [str(record.run_dir) for record in records]


def _row(name: str, record: Record, index: int) -> dict[str, Any]:
    said = verdict(record)
    bar = None
    if said and said["interval"]:
        bar = interval_bar(said["best"], said["interval"], f"interval-{index}")
    return {
        "name": name,
        "line": sample(index + 1, marked=True),
        "state": record.state,
        "verdict": said,
        "bar": bar,
        "oracle": record.best.get("oracle/accuracy"),
        "seconds": record.seconds,
        "trained": record.summary.get("trainable_parameters"),
        "frozen": record.summary.get("frozen_parameters"),
        "steps": record.steps,
    }


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The keys in which configs differ, with the values as JSON, ``–`` where there is none."""
    flat = [dict(_leaves(config, ())) for config in configs]
    keys = sorted({key for one in flat for key in one})
    found = []
    for key in keys:
        if key.split(".")[0] in NOT_ASKED:
            continue
        values = [to_json(one[key]) if key in one else "–" for one in flat]
        if len(set(values)) > 1:
            found.append((key, [value.strip('"') for value in values]))
    return found[:MOST_KEYS]


def _leaves(value: Any, path: tuple[str | int, ...]) -> Any:
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inside = enumerate(value)
    if not inside:
        yield dotted(path), value
    for key, item in inside:
        yield from _leaves(item, (*path, key))


def _charts(names: Sequence[str], records: Sequence[Record]) -> list[Chart]:
    wanted = {
        "val/accuracy": "Validation accuracy",
        "val/loss": "Validation loss",
        "train/loss": "Training loss",
        "lr": "Learning rate",
        "target/im": "Information maximisation on the target, without labels",
    }
    found = []
    for metric, title in wanted.items():
        series = []
        for i, (name, record) in enumerate(zip(names, records, strict=True), 1):
            points = record.curve(metric)
            if metric == "train/loss":
                points = without_short(points)
            series.append(Series(name, points, i, marked=metric.startswith(("val/", "target/"))))
        found.append(chart(metric.replace("/", "-"), title, series))
    return [one for one in found if one is not None]


def _recall(records: Sequence[Record]) -> dict[str, Any] | None:
    """Recall by class and run; those first in which runs differ most."""
    table: dict[str, list[float | None]] = {}
    images: dict[str, int] = {}
    for i, record in enumerate(records):
        if record.validation is None:
            continue
        for row in class_rows(record.validation.confusion, len(record.classes)):
            name = named(record.classes, row.number)
            table.setdefault(name, [None] * len(records))[i] = row.recall
            images[name] = max(images.get(name, 0), row.images)
    if not table:
        return None

    def range_of(name: str) -> float:
        some = [value for value in table[name] if value is not None]
        return max(some) - min(some) if some else 0.0

    order = sorted(table, key=lambda name: (-range_of(name), name))
    rows = [
        {"name": name, "images": images[name], "recall": table[name], "range": range_of(name)}
        for name in order[:MOST_CLASSES]
    ]
    return {"rows": rows, "unseen": len(order) - len(rows)}


def answers_of(record: Record) -> Answers | None:
    """What a run called each of the images that it kept for comparisons."""
    if record.validation is None:
        return None
    called, positions = {}, {}
    for position, label, said, part in record.validation.seen.compared.T.tolist():
        name = record.validation.names[position]
        called[name] = (
            named(record.classes, label), named(record.classes, said), part / UNIT,
        )  # fmt: skip
        positions[name] = position
    return Answers(called, positions)


def _common(answers: Sequence[Answers | None]) -> list[str]:
    """Names of the images that all runs saw, with the same label."""
    some = [one for one in answers if one is not None]
    if len(some) < 2:
        return []
    first, *others = some
    return [
        name
        for name, (label, _, _) in first.called.items()
        if all(name in one.called and one.called[name][0] == label for one in others)
    ]


def _tests(
    names: Sequence[str], answers: Sequence[Answers | None], common: Sequence[str]
) -> list[dict[str, Any]]:
    """Each pair of runs: the images that only one of them has right, and the exact sign test."""
    if not common:
        return []
    right = {
        name: np.array([one.called[image][0] == one.called[image][1] for image in common])
        for name, one in zip(names, answers, strict=True)
        if one is not None
    }
    found = []
    for (a, of_a), (b, of_b) in combinations(right.items(), 2):
        only_a, only_b = int((of_a & ~of_b).sum()), int((of_b & ~of_a).sum())
        p = sign_test(only_a, only_b)
        found.append(
            {
                "first": a, "second": b, "only_first": only_a, "only_second": only_b, "p": p,
                "noise": p >= NOISE, "better": a if only_a > only_b else b,
            }
        )  # fmt: skip
    return found


def _disagreements(
    names: Sequence[str],
    answers: Sequence[Answers | None],
    common: Sequence[str],
    pictures: Sequence[Pictures],
) -> list[dict[str, Any]]:
    """Images that runs call different things: those first whose answers are the surest."""
    some = [i for i, one in enumerate(answers) if one is not None]
    found = []
    for image in common:
        said = [answers[i].called[image] for i in some]  # type: ignore[union-attr]
        if len({called for _, called, _ in said}) > 1:
            found.append((min(sure for _, _, sure in said), image, said))
    found.sort(key=lambda item: (-item[0], item[1]))
    first = some[0] if some else 0
    return [
        {
            "name": image,
            "label": said[0][0],
            "picture": pictures[first].validation(answers[first].positions[image], image),  # type: ignore[union-attr]
            "said": [
                (names[i], called, sure, called == label)
                for i, (label, called, sure) in zip(some, said, strict=True)
            ],
        }
        for _, image, said in found[:MOST_IMAGES]
    ]
