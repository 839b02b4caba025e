"""What the best model says of the validation images, as plain values for the template of a run."""

from __future__ import annotations

from typing import Any

from tl.report.charts import reliability
from tl.report.numbers import calibration, class_rows, confused_pairs, wilson
from tl.report.pictures import Pictures, named
from tl.report.record import Record
from tl.report.seen import UNIT

MOST_IN_MATRIX = 20
"""classes; of more there are the pairs that were confused most often"""
MOST_PAIRS, FIRST_CLASSES, MOST_CLASSES = 30, 12, 1000


def confusion(record: Record) -> dict[str, Any] | None:
    """The matrix of few classes, and the pairs that were confused most often."""
    found = record.validation
    if found is None:
        return None
    names = record.classes
    totals: dict[int, int] = {}
    for label, _, count in found.confusion.tolist():
        totals[label] = totals.get(label, 0) + count
    pairs = [
        {"label": named(names, a), "called": named(names, b), "count": n, "share": n / totals[a]}
        for a, b, n in confused_pairs(found.confusion, MOST_PAIRS)
    ]
    matrix = None
    if len(names) <= MOST_IN_MATRIX:
        cells = {(a, b): n for a, b, n in found.confusion.tolist()}
        matrix = [
            {
                "name": name,
                "cells": [
                    {
                        "count": (n := cells.get((a, b), 0)),
                        "level": -(-9 * n // totals[a]) if n else 0,
                        "right": a == b,
                    }
                    for b in range(len(names))
                ],
            }
            for a, name in enumerate(names)
        ]
    return {
        "matrix": matrix,
        "names": names,
        "pairs": pairs,
        "wrong": found.images - found.right,
        "images": found.images,
    }


def classes(record: Record) -> dict[str, Any] | None:
    """How each class fares, the worst first."""
    if record.validation is None:
        return None
    rows = [
        {
            "name": named(record.classes, row.number),
            "precision": row.precision,
            "recall": row.recall,
            "interval": wilson(row.right, row.images) if row.images else None,
            "f1": row.f1,
            "images": row.images,
        }
        for row in class_rows(record.validation.confusion, len(record.classes))
    ]
    return {
        "first": rows[:FIRST_CLASSES],
        "rest": rows[FIRST_CLASSES:MOST_CLASSES],
        "unseen": max(0, len(rows) - MOST_CLASSES),
    }


def calibrated(record: Record) -> dict[str, Any] | None:
    """The reliability diagram, and the number that goes with it."""
    found = record.validation and calibration(record.validation.seen.bins)
    if not found:
        return None
    return {"found": found, "svg": reliability(found, "reliability")}


def grid(record: Record, pictures: Pictures, which: str) -> list[dict[str, Any]] | None:
    """The images of the ``mistakes`` or of those that the model is ``unsure`` of."""
    if record.validation is None:
        return None
    rows = getattr(record.validation.seen, which)
    found = []
    for i, position in enumerate(rows.ids.tolist()):
        name = record.validation.names[position]
        label = int(rows.labels[i])
        ranked = zip(rows.classes[i].tolist(), rows.parts[i].tolist(), strict=True)
        guesses = [(named(record.classes, number), part / UNIT) for number, part in ranked]
        found.append(
            {
                "name": name,
                "picture": pictures.validation(position, name),
                "label": named(record.classes, label),
                "guesses": guesses,
                "right": int(rows.classes[i][0]) == label,
            }
        )
    return found
