"""report/validation.npz: read as it was written; what is something else is refused, and not run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tl.errors import UserError
from tl.report import kept
from tl.report.kept import Validation, read_validation, write_validation
from tl.report.seen import Watch

NAMES = [f"ä/{i}" for i in range(9)] + ["bad \udcff name"]


def written(run_dir: Path) -> Validation:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(10, 3, generator=generator), torch.arange(10) % 3
    watch = Watch(10, 3, torch.device("cpu"))
    watch.add(torch.arange(10), labels, logits, torch.ones(10))
    confusion = np.zeros((3, 3), dtype=np.int64)
    np.add.at(confusion, (labels.numpy(), logits.argmax(1).numpy()), 1)
    seen = watch.gather(lambda x: x, lambda x: x)
    write_validation(run_dir, 7, confusion, seen, NAMES)
    found = read_validation(run_dir, 3)
    assert found is not None
    assert found.right == confusion.diagonal().sum()
    np.testing.assert_array_equal(found.seen.bins, seen.bins)
    np.testing.assert_array_equal(found.seen.compared, seen.compared)
    np.testing.assert_array_equal(found.seen.mistakes.parts, seen.mistakes.parts)
    return found


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_validation(tmp_path, 3) is None
    found = written(tmp_path)
    assert found.step == 7
    assert found.images == 10
    assert dict(found.names) == dict(enumerate(NAMES))
    assert os.listdir(tmp_path / "report") == ["validation.npz"]  # noqa: PTH208


class Opened:
    """What would run a command if it was unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def hostile_files() -> dict[str, bytes]:
    pickled = io.BytesIO()
    np.savez(pickled, about=np.array([Opened()], dtype=object))
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bins.npy", bytes(kept.MOST_BYTES + 1))
    return {
        "empty": b"",
        "text": b"no archive",
        "a pickle": pickle.dumps(Opened()),
        "objects": pickled.getvalue(),
        "huge": huge.getvalue(),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "a pickle", "objects", "huge"])
def test_what_is_no_such_file_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "validation.npz").write_bytes(hostile_files()[kind])
    with pytest.raises(UserError, match="is not what a run writes there"):
        read_validation(tmp_path, 3)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bins", np.zeros((3, 4), dtype=np.int64)),
        ("bins", np.zeros((3, 15), dtype=np.float64)),
        ("confusion", np.array([[0, 3, 1]])),
        ("confusion", np.array([[0, 0, -1]])),
        ("compared", np.array([[0], [5], [0], [0]])),
        ("compared", np.array([[99], [0], [0], [0]])),
        ("unsure_parts", np.full((10, 3), 2**31)),
        ("mistakes_labels", np.array([[0]])),
    ],
)
def test_numbers_that_no_run_writes_are_refused(
    name: str, value: np.ndarray, tmp_path: Path
) -> None:
    written(tmp_path)
    path = tmp_path / "report" / "validation.npz"
    with np.load(path) as arrays:
        changed = {key: arrays[key] for key in arrays.files} | {name: value}
    np.savez(path, **changed)
    with pytest.raises(UserError, match="is not what a run writes there"):
        read_validation(tmp_path, 3)
