"""Promise 4: what is on the disk is whole, or it is known not to be."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tl.engine import checkpoint
from tl.errors import UserError


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
    state, loaded = checkpoint.read(checkpoint.write(tmp_path, 5, {"phase": 1}, tensors, 1))
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


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk: writing past it fails in the same way."""
    _write(tmp_path, 1)
    script = f"""
import resource, signal, torch
from pathlib import Path
from tl.engine import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.write(Path({str(tmp_path)!r}), 2, {{}}, {{"a": torch.zeros(100_000)}}, keep=1)
except Exception as error:
    print(type(error).__name__, error)
"""
    assert resource.RLIMIT_FSIZE is not None
    assert signal.SIGXFSZ
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Error" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert checkpoint.damage(tmp_path / "step-1") == ""


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
