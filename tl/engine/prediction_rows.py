"""How a prediction is written: a row of CSV, or a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

DIGITS = 6


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image."""

    path: str
    probabilities: Sequence[float]
    """one for each class, in the order of the classes"""
    ranking: Sequence[int]
    """positions of the most probable classes, the best first: as many as are asked for"""


class Rows(Protocol):
    """A format."""

    encoding_errors: str
    """How a path that is not UTF-8 (Python: lone surrogates) goes into the file."""

    def __init__(self, classes: Sequence[str], top_k: int | None) -> None: ...
    def header(self) -> str: ...
    def row(self, prediction: Prediction) -> str: ...


class Csv:
    """Comma-separated values by RFC 4180, with plain line feeds."""

    encoding_errors = "surrogateescape"  # the bytes of the file name, as they are

    def __init__(self, classes: Sequence[str], top_k: int | None) -> None:
        self.classes, self.top_k = classes, top_k

    def header(self) -> str:
        if self.top_k is None:
            columns = [f"p({name})" for name in self.classes]
        else:
            ranks = range(1, self.top_k + 1)
            columns = [name for rank in ranks for name in (f"class{rank}", f"p{rank}")]
        return _csv_line(["path", "class", "confidence", *columns])

    def row(self, prediction: Prediction) -> str:
        p, best = prediction.probabilities, prediction.ranking[0]
        if self.top_k is None:
            values = [_decimal(value) for value in p]
        else:
            values = [v for i in prediction.ranking for v in (self.classes[i], _decimal(p[i]))]
        return _csv_line([prediction.path, self.classes[best], _decimal(p[best]), *values])


class JsonLines:
    """One JSON object on each line."""

    encoding_errors = "backslashreplace"  # \udcxx, which is JSON's own escape

    def __init__(self, classes: Sequence[str], top_k: int | None) -> None:
        self.classes, self.top_k = classes, top_k

    def header(self) -> str:
        return ""

    def row(self, prediction: Prediction) -> str:
        p = [round(value, DIGITS) for value in prediction.probabilities]
        best = prediction.ranking[0]
        value = {"path": prediction.path, "class": self.classes[best], "confidence": p[best]}
        if self.top_k is None:
            value["probabilities"] = dict(zip(self.classes, p, strict=True))
        else:
            value["top"] = [
                {"class": self.classes[i], "probability": p[i]} for i in prediction.ranking
            ]
        return json.dumps(value, ensure_ascii=False) + "\n"


FORMATS: dict[str, type[Rows]] = {"csv": Csv, "jsonl": JsonLines}


def _decimal(value: float) -> str:
    return f"{value:.{DIGITS}f}"


def _csv_line(fields: Sequence[str]) -> str:
    # Not csv.writer: before Python 3.13 it leaves a carriage return unquoted if lines end in "\n".
    return ",".join(_quoted(field) for field in fields) + "\n"


def _quoted(field: str) -> str:
    if any(character in field for character in ',"\r\n'):
        return '"' + field.replace('"', '""') + '"'
    return field
