"""What W&B is given of the best model's mistakes is what the report keeps of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl.data.images import BadImage
from tl.data.split import Source, Split
from tl.engine.findings import findings_of
from tl.report import kept
from tl.report.seen import Watch
from tl.tracking.findings import read_findings, write_findings

NAMES = ["a/0.png", "a/1.png", "b/2.png", "b/3.png"]
LABELS = [0, 0, 1, 1]
LOGITS = [[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]]  # the second and the third are wrong


def source(names: list[str]) -> Source:
    def read(place: int) -> Image.Image:
        if place == 2:
            raise BadImage("b/2.png: cut short")
        return Image.new("RGB", (40, 20), "red")

    val = Split(names, np.array(LABELS, dtype=np.int64), read)
    return Source("toy", ("cat", "dog"), val, val)


@pytest.fixture
def found(tmp_path: Path) -> kept.Validation:
    labels, logits = torch.tensor(LABELS), torch.tensor(LOGITS)
    watch = Watch(len(NAMES), 2, torch.device("cpu"))
    watch.add(torch.arange(len(NAMES)), labels, logits, torch.ones(len(NAMES)))
    seen = watch.gather(lambda tensor: tensor, lambda parts: parts)
    kept.write_validation(tmp_path, 7, np.array([[1, 1], [1, 1]]), seen, NAMES)
    read = kept.read_validation(tmp_path, 2)
    assert read is not None
    return read


def test_mistakes_are_there_with_what_they_were_called_and_how_sure_it_was(
    tmp_path: Path, found: kept.Validation
) -> None:
    write_findings(tmp_path, *findings_of(found, source(NAMES)))
    written = read_findings(tmp_path)
    assert written is not None
    first, second = written.mistakes
    assert (first.file, first.label, first.predicted) == ("a/1.png", "cat", "dog")
    assert (second.file, second.label, second.predicted) == ("b/2.png", "dog", "cat")
    # In parts of 2 ** -30.
    assert first.probability == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=2e-7)
    assert (first.picture, second.picture) == ("000.jpg", "")  # which cannot be read
    assert written.classes == ["cat", "dog"]
    assert written.confusion == [[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]
    assert {row["class"]: row["f1"] for row in written.per_class} == {"cat": 0.5, "dog": 0.5}
    assert all(row["images"] == 2 for row in written.per_class)


def test_an_image_that_is_another_one_now_is_not_shown(found: kept.Validation) -> None:
    _, pictures = findings_of(found, source(["a/0.png", "a/new.png", "b/2.png", "b/3.png"]))
    assert pictures == [None, None]
