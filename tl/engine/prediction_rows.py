"""How a prediction is written: a row of CSV, or a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

DIGITS = 6


@dataclass(frozen=True)
class Layout:
    """What a row says besides path, class and confidence."""

    probabilities: bool = True
    """of all classes, in their order"""
    top_k: int | None = None
    """that many of the most probable classes"""
    threshold: float = 0.0
    """no class is named whose confidence, as it is written, is lower"""
    features: bool = False
    """which row of the file of features is this image's"""
    cam: bool = False
    """which file shows what the network went by"""
    errors: bool = False
    """images that cannot be decoded have a row, which says why"""


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image; or why it could not be read, and nothing else."""

    path: str
    probabilities: Sequence[float] = ()
    """one for each class, in the order of the classes"""
    ranking: Sequence[int] = ()
    """positions of the most probable classes, the best first: as many as are asked for"""
    position: int = 0
    """of the image among all, from 0"""
    cam: str = ""
    error: str = ""


class Rows(Protocol):
    """A format."""

    def __init__(self, classes: Sequence[str], layout: Layout) -> None: ...
    def header(self) -> bytes: ...
    def row(self, prediction: Prediction) -> bytes: ...


class Csv:
    """Comma-separated values by RFC 4180, with plain line feeds.

    Paths have the bytes that they have on the disk, whatever a spreadsheet would make of them.
    """

    def __init__(self, classes: Sequence[str], layout: Layout) -> None:
        self.classes, self.layout = classes, layout

    def header(self) -> bytes:
        asked, columns = self.layout, ["path", "class", "confidence"]
        if asked.probabilities:
            columns += [f"p({name})" for name in self.classes]
        for rank in range(1, (asked.top_k or 0) + 1):
            columns += [f"class{rank}", f"p{rank}"]
        more = (("row", asked.features), ("cam", asked.cam), ("error", asked.errors))
        return _csv_line(columns + [name for name, wanted in more if wanted])

    def row(self, prediction: Prediction) -> bytes:
        asked, p = self.layout, prediction.probabilities
        if prediction.error:
            wide = len(self.classes) * asked.probabilities + 2 * (asked.top_k or 0)
            fields = [prediction.path, *[""] * (2 + wide)]
        else:
            best = prediction.ranking[0]
            sure = is_sure(p[best], asked.threshold)
            fields = [prediction.path, self.classes[best] if sure else "", _decimal(p[best])]
            if asked.probabilities:
                fields += [_decimal(value) for value in p]
            if asked.top_k:
                fields += [v for i in prediction.ranking for v in (self.classes[i], _decimal(p[i]))]
        if asked.features:
            fields.append(str(prediction.position))
        if asked.cam:
            fields.append(prediction.cam)
        if asked.errors:
            fields.append(prediction.error)
        return _csv_line(fields)


class JsonLines:
    """One JSON object on each line."""

    def __init__(self, classes: Sequence[str], layout: Layout) -> None:
        self.classes, self.layout = classes, layout

    def header(self) -> bytes:
        return b""

    def row(self, prediction: Prediction) -> bytes:
        asked, value = self.layout, dict[str, Any](path=prediction.path)
        if prediction.error:
            value["error"] = prediction.error
        else:
            p = [round(value, DIGITS) for value in prediction.probabilities]
            best = prediction.ranking[0]
            value["class"] = self.classes[best] if is_sure(p[best], asked.threshold) else None
            value["confidence"] = p[best]
            if asked.probabilities:
                value["probabilities"] = dict(zip(self.classes, p, strict=True))
            if asked.top_k:
                value["top"] = [
                    {"class": self.classes[i], "probability": p[i]} for i in prediction.ranking
                ]
        if asked.features:
            value["row"] = prediction.position
        if asked.cam and prediction.cam:
            value["cam"] = prediction.cam
        text = json.dumps(value, ensure_ascii=False) + "\n"
        return text.encode(errors="backslashreplace")  # \udcxx, which is JSON's own escape


FORMATS: dict[str, type[Rows]] = {"csv": Csv, "jsonl": JsonLines}


def is_sure(confidence: float, threshold: float) -> bool:
    """Whether a class is named: by the digits that are written, so that a reader finds the same."""
    return round(confidence, DIGITS) >= threshold


def _decimal(value: float) -> str:
    return f"{value:.{DIGITS}f}"


def _csv_line(fields: Sequence[str]) -> bytes:
    # Not csv.writer: before Python 3.13 it leaves a carriage return unquoted if lines end in "\n".
    text = ",".join(_quoted(field) for field in fields) + "\n"
    try:
        return text.encode(errors="surrogateescape")  # the bytes of the file name, as they are
    except UnicodeEncodeError:  # a class whose name is no text, from a config that is not ours
        return text.encode(errors="backslashreplace")


def _quoted(field: str) -> str:
    if any(character in field for character in ',"\r\n'):
        return '"' + field.replace('"', '""') + '"'
    return field
