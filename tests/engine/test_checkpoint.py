"""Promise 4: what is on the disk is whole, or it is known not to be."""

from __future__ import annotations

import contextlib
import errno
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import files_end_at
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tl.engine import checkpoint
from tl.errors import UserError
from tl.models import tensor_files


def _write(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {"network/weight": torch.full((4, 3), float(step))}
    return checkpoint.write(folder, step, {"phase": 0}, tensors, keep)


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5, dtype=torch.float64),
        "b": torch.arange(4).view(2, 2).T,  # not contiguous
        "c": torch.tensor(7),
        "d": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "e": torch.randn(3).to(torch.bfloat16),
    }
    copies = tensor_files.copies(tensors)
    state, loaded = checkpoint.read(checkpoint.write(tmp_path, 5, {"phase": 1}, copies, 1))
    assert state == {"format": 1, "step": 5, "phase": 1}
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_older_checkpoints_go_only_when_a_new_one_is_there(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        _write(tmp_path, step)
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-10", "step-9"]
    assert not list(tmp_path.glob(".staging*"))


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [_flip_a_bit, _cut, Path.unlink])
@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST])
def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(
    tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    _write(tmp_path, 1)
    newest = _write(tmp_path, 2)
    harm(newest / name)
    if name == checkpoint.MANIFEST and harm is _flip_a_bit:  # the last byte is the closing brace
        assert (newest / name).read_text()[-1] != "}"
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) == tmp_path / "step-1"
    assert len(said) == 1
    assert "step-2 is damaged" in said[0]
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.read(newest)


def test_a_staging_folder_left_by_a_crash_is_no_checkpoint_and_goes_away(tmp_path: Path) -> None:
    stale = tmp_path / ".staging-1"
    stale.mkdir(parents=True)
    (stale / checkpoint.TENSORS).write_bytes(b"half")
    assert checkpoint.newest(tmp_path, print) is None
    _write(tmp_path, 1)
    assert not stale.exists()


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    _cut(_write(tmp_path, 3) / checkpoint.TENSORS)
    _write(tmp_path, 3)
    assert checkpoint.damage(tmp_path / "step-3") == ""


def test_a_new_checkpoint_is_never_deleted_for_a_damaged_newer_one(tmp_path: Path) -> None:
    _write(tmp_path, 10)
    _cut(_write(tmp_path, 20) / checkpoint.TENSORS)
    _write(tmp_path, 15, keep=1)
    assert checkpoint.newest(tmp_path, print) == tmp_path / "step-15"
    assert checkpoint.committed(tmp_path) == [tmp_path / "step-15"]


def test_another_format_is_not_taken_for_this_one(tmp_path: Path) -> None:
    written = _write(tmp_path, 1)
    state = json.loads((written / checkpoint.STATE).read_text())
    (written / checkpoint.STATE).write_text(json.dumps({**state, "format": 99}))
    sums = {n: checkpoint.sha256(written / n) for n in (checkpoint.TENSORS, checkpoint.STATE)}
    (written / checkpoint.MANIFEST).write_text(json.dumps({"sha256": sums}))
    assert "format 99" in checkpoint.damage(written)


@pytest.mark.parametrize("size", [10, 500, 100_000])
def test_a_full_disk_leaves_the_old_checkpoint_whole_and_is_named(
    tmp_path: Path, size: int
) -> None:
    _write(tmp_path, 1)
    tensors = {"a": torch.zeros(100_000)}
    with files_end_at(size), pytest.raises(OSError, match=r"tensors\.safetensors") as caught:
        checkpoint.write(tmp_path, 2, {}, tensors, keep=1)
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert checkpoint.damage(tmp_path / "step-1") == ""


def test_a_checkpoint_of_the_same_step_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    _write(tmp_path, 3, keep=1)
    checkpoint.write(tmp_path, 3, {"phase": 7}, {"a": torch.zeros(1)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    state, _ = checkpoint.read(tmp_path / "step-3")
    assert state["phase"] == 7


@pytest.mark.parametrize("dies_at", range(1, 12))
def test_wherever_writing_ends_a_whole_checkpoint_is_there(
    tmp_path: Path, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the only one there is, of the same step, is to be replaced."""
    _write(tmp_path, 3, keep=1)
    calls = 0

    def dies(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= dies_at:  # and nothing that comes after it, such as tidying up, happens
                raise SystemExit
            return original(*arguments, **options)

        return call

    # All that changes the disk in a way that matters goes through these.
    monkeypatch.setattr(checkpoint.tensor_files, "write", dies(checkpoint.tensor_files.write))
    monkeypatch.setattr(checkpoint, "sync", dies(checkpoint.sync))
    monkeypatch.setattr(Path, "rename", dies(Path.rename))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", dies(checkpoint.shutil.rmtree))
    with contextlib.suppress(SystemExit):
        _write(tmp_path, 3, keep=1)
    monkeypatch.undo()
    found = checkpoint.newest(tmp_path, print)
    assert found is not None
    assert found.name.startswith("step-3")
    _write(tmp_path, 4, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST]), st.data())
def test_any_byte_that_changes_is_found_or_changes_nothing(name: str, data: st.DataObject) -> None:
    """In the manifest white space means nothing: what is read is then what was written."""
    with tempfile.TemporaryDirectory() as folder:
        written = _write(Path(folder), 1)
        whole = (written / name).read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        value = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
        (written / name).write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        if not checkpoint.damage(written):
            assert name == checkpoint.MANIFEST
            manifest = json.loads((written / name).read_text())
            assert manifest["sha256"] == json.loads(whole)["sha256"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST]), st.data())
def test_any_cut_is_found(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = _write(Path(folder), 1)
        whole = (written / name).read_bytes()
        (written / name).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        assert checkpoint.damage(written)


numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1).filter(lambda k: k not in ("format", "step")), numbers),
    st.integers(0, 2**40),
)
def test_any_state_comes_back(state: dict[str, Any], step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tensors = {"a": torch.zeros(1)}
        loaded, _ = checkpoint.read(checkpoint.write(Path(folder), step, state, tensors, 1))
    assert loaded == {"format": checkpoint.FORMAT, "step": step, **state}


@pytest.mark.parametrize("make", [
    lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    lambda groups: torch.optim.SGD(groups, lr=0.1),
    lambda groups: torch.optim.AdamW(groups, lr=0.1),
])  # fmt: skip
def test_an_optimizer_goes_on_bit_for_bit(
    tmp_path: Path, make: Callable[[list[dict[str, object]]], torch.optim.Optimizer]
) -> None:
    def set_up() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        names = [name for name, _ in model.named_parameters()]
        return model, make([{"params": list(model.parameters()), "names": names}])

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=generator)).square().sum().backward()
        optimizer.step()

    model, optimizer = set_up()
    for number in range(3):
        step(model, optimizer, number)
    tensors = checkpoint.under("network", model.state_dict())
    tensors |= checkpoint.optimizer_tensors(optimizer)
    _, loaded = checkpoint.read(checkpoint.write(tmp_path, 3, {}, tensors, 1))
    other, other_optimizer = set_up()
    other.load_state_dict(checkpoint.part("network", loaded))
    checkpoint.load_optimizer(other_optimizer, loaded)
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, other_optimizer, number)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
