"""Whatever a file or a class is called, any reader of CSV or JSON gets it back."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tl.engine.prediction_rows import Csv, JsonLines, Layout, Prediction, is_sure

# Names as the system has them, what is no UTF-8 as surrogates; and what spreadsheets take for more.
ANY = st.binary(min_size=1, max_size=12).map(lambda b: os.fsdecode(b.replace(b"\0", b"x")))
ODD = st.sampled_from(["=cmd|' /C calc'!A0", "-1", "@SUM(1)", 'a"b', "a,b", "a\nb", "\r", " ", "'"])
EVERYTHING = Layout(True, 2, 0.5, features=True, cam=True, errors=True)


def read_csv(content: bytes) -> list[dict[str, str]]:
    text = content.decode(errors="surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


@given(paths=st.lists(ANY | ODD, min_size=1), classes=st.lists(ANY | ODD, min_size=2, unique=True))
@example(paths=["=1+1", "\udcff,\n"], classes=["=a", '"'])
def test_names_come_back(paths: list[str], classes: list[str]) -> None:
    p = [1.0 - 0.001 * (len(classes) - 1)] + [0.001] * (len(classes) - 1)
    made = [Prediction(path, p, (0, 1), i, f"{i}.jpg") for i, path in enumerate(paths)]
    made.append(Prediction(paths[0], position=len(paths), error="damaged, it is"))
    rows = Csv(classes, EVERYTHING)
    found = read_csv(rows.header() + b"".join(map(rows.row, made)))
    lines = JsonLines(classes, EVERYTHING)
    content = lines.header() + b"".join(map(lines.row, made))
    values = [json.loads(line) for line in content.split(b"\n")[:-1]]
    assert [row["path"] for row in found] == [value["path"] for value in values]
    assert [row["path"] for row in found] == [*paths, paths[0]]
    for row, value in zip(found[:-1], values[:-1], strict=True):
        assert row["class"] == value["class"] == row["class1"] == value["top"][0]["class"]
        assert row["class"] == classes[0]
        assert value["probabilities"].keys() == set(classes)
        assert (int(row["row"]), row["cam"]) == (value["row"], value["cam"])
        assert row["error"] == ""
        assert "error" not in value
    bad, said = found[-1], values[-1]
    assert bad["error"] == said["error"] == "damaged, it is"
    assert bad["class"] == bad["confidence"] == bad["class2"] == bad["cam"] == ""
    assert said.keys() == {"path", "error", "row"}


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_class_is_named_from_the_threshold_on_as_it_is_written(p: float, least: float) -> None:
    rows = Csv(["a", "b"], Layout(threshold=least))
    [row] = read_csv(rows.header() + rows.row(Prediction("x", (p, 1 - p), (0,))))
    assert (row["class"] == "a") == (float(row["confidence"]) >= least) == is_sure(p, least)
    line = json.loads(
        JsonLines(["a", "b"], Layout(threshold=least)).row(Prediction("x", (p, 1 - p), (0,)))
    )
    assert line["class"] == (row["class"] or None)


def test_a_class_that_is_no_text_is_escaped() -> None:
    rows = Csv(["\ud800"], Layout())
    assert (
        read_csv(rows.header() + rows.row(Prediction("x", (1.0,), (0,))))[0]["class"] == "\\ud800"
    )


@pytest.mark.parametrize("layout", [Layout(), Layout(False, 1), EVERYTHING])
def test_each_row_has_as_many_fields_as_the_header(layout: Layout) -> None:
    rows = Csv(["a", "b", "c"], layout)
    good = Prediction("x", (0.5, 0.3, 0.2), (0, 1)[: layout.top_k or 1])
    lines = [rows.header(), rows.row(good), rows.row(Prediction("y", error="no"))]
    assert len({line.count(b",") for line in lines}) == 1
