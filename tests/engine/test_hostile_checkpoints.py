"""Checkpoints that somebody has altered, sums included: one clear error, and nothing is run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gloo_workers import GlooWorkers
from hostile_files import Evil
from safetensors.torch import load_file, save_file

from tl.engine import checkpoint
from tl.errors import UserError

ARGUMENTS = ["data.source=digits", "data.image_size=32", "data.max_train=16", "data.max_val=8",
             "model.name=squeezenet1_1", "model.weights=null", "strategy=head", "epochs=2",
             "global_batch_size=8", "data.workers=0", "tracking.trackers=[jsonl]",
             "checkpoint.every_steps=1", "checkpoint.keep=9"]  # fmt: skip


def train(folder: str, *more: str) -> tuple[int, str]:
    """launch.train.main in a worker: exit code and standard error."""
    from launch import train

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = train.main([*ARGUMENTS, f"run_dir={folder}", *more])
    return code, errors.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, gloo_workers: GlooWorkers) -> Path:
    """A run with a checkpoint in the middle of its second epoch."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert gloo_workers.run(1, train, str(folder)) == [(0, "")]
    shutil.rmtree(folder / "checkpoints" / "step-4")
    (folder / "summary.json").unlink()
    return folder


def sign(folder: Path) -> None:
    """Make the sums of the manifest agree with what there is."""
    names = (checkpoint.TENSORS, checkpoint.STATE)
    sums = {name: checkpoint.sha256(folder / name) for name in names}
    (folder / checkpoint.MANIFEST).write_text(json.dumps({"sha256": sums}))


def state(**changes: Any) -> Callable[[Path], None]:
    """Another state; a value that is ... is left out."""

    def alter(folder: Path) -> None:
        values = json.loads((folder / checkpoint.STATE).read_text()) | changes
        values = {name: value for name, value in values.items() if value is not ...}
        (folder / checkpoint.STATE).write_text(json.dumps(values))

    return alter


def content(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        loaded = load_file(folder / checkpoint.TENSORS)
        change(loaded)
        save_file(loaded, folder / checkpoint.TENSORS)

    return alter


BIAS = "network/features.0.bias"
MOMENTUM = "optimizer/classifier.1.weight/momentum_buffer"
# What the command line says, if the only checkpoint is altered so.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no phase": (state(phase=...), "phase missing"),
    "phase as text": (state(phase="0"), "holds what no run writes: phase"),
    "phase too far": (state(phase=7), "the checkpoint is after 7 phases"),
    "negative step": (state(phase_step=-1), "holds what no run writes: phase_step"),
    "step too far": (state(phase_step=5), "phase head has 4 steps now, and 5 are done"),
    "huge step": (state(phase_step=10**400), "holds what no run writes: phase_step"),
    "step that is true": (state(step=True), "holds what no run writes: step"),
    "best is a list": (state(best=[]), "holds what no run writes: best"),
    "early stop of no phase": (state(early_stops=[{"index": 0}]), "no run writes: early_stops"),
    "bad images": (state(bad_images={"a": {}}), "holds what no run writes: bad_images"),
    "seconds": (state(wall_seconds="1", step="2"), "no run writes: step, wall_seconds"),
    "other data": (state(data="0" * 64), "are not those it began with"),
    "no tensors": (tensors(dict.clear), "is of another network"),
    "a tensor more": (tensors(lambda t: t.update({"network/x": t[BIAS].clone()})),
                      "of another network"),
    "other shapes": (tensors(lambda t: t.update({BIAS: t[BIAS][:3]})), "is of another network"),
    "other momentum": (tensors(lambda t: t.update({MOMENTUM: t[MOMENTUM].new_zeros(3)})),
                       "optimizer state does not fit classifier.1.weight"),
    "no safetensors": (content(checkpoint.TENSORS, b"\xff" * 99), "is no readable weights file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_an_altered_checkpoint_is_refused_with_exit_code_2(
    whole: Path, tmp_path: Path, gloo_workers: GlooWorkers, kind: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    alter, expected = REFUSED[kind]
    for other in ("step-1", "step-2"):
        shutil.rmtree(folder / "checkpoints" / other)
    alter(folder / "checkpoints" / "step-3")
    sign(folder / "checkpoints" / "step-3")
    [(code, errors)] = gloo_workers.run(1, train, str(folder), "--resume", "auto")
    assert (code, "Traceback" in errors) == (2, False), errors
    assert errors.startswith("error: ")
    assert expected in errors
    assert len(errors) < 3000


def manifest(value: Any) -> Callable[[Path], object]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return content(checkpoint.MANIFEST, data)


def pipe(name: str) -> Callable[[Path], object]:
    def alter(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return alter


# What is no checkpoint: the one before it is taken.
PASSED_OVER: dict[str, Callable[[Path], object]] = {
    "deep manifest": manifest(b"[" * 100_000),
    "manifest of a list": manifest([]),
    "manifest of numbers": manifest({"sha256": {checkpoint.TENSORS: 1, checkpoint.STATE: 2}}),
    "manifest of a huge number": manifest(b'{"sha256": ' + b"9" * 5000 + b"}"),
    "manifest of other files": manifest({"sha256": {"../../../config.yaml": "", "/etc/fstab": ""}}),
    "manifest that is a pipe": pipe(checkpoint.MANIFEST),
    "tensors that are a pipe": pipe(checkpoint.TENSORS),
    "state that is a pipe": pipe(checkpoint.STATE),
    "deep state": lambda folder: (content(checkpoint.STATE, b"[" * 100_000)(folder), sign(folder)),
    "state of a list": lambda folder: (content(checkpoint.STATE, b"[]")(folder), sign(folder)),
    "another format": lambda folder: (state(format=float("nan"))(folder), sign(folder)),
    "a huge format": lambda folder: (state(format=[9] * 10**5)(folder), sign(folder)),
}  # fmt: skip


@pytest.mark.parametrize("kind", PASSED_OVER)
def test_what_is_no_checkpoint_is_passed_over(whole: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    PASSED_OVER[kind](folder / "step-3")
    said: list[str] = []
    assert checkpoint.newest(folder, said.append) == folder / "step-2"
    assert len(said) == 1
    assert len(said[0]) < 1000
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.read(folder / "step-3")


def test_a_manifest_has_no_say_in_which_files_are_read(whole: Path, tmp_path: Path) -> None:
    """What it names besides is not looked at: a pipe there would be waited for."""
    folder = shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints") / "step-3"
    os.mkfifo(tmp_path / "pipe")
    sums = json.loads((folder / checkpoint.MANIFEST).read_text())["sha256"]
    sums |= {"../../pipe": "0" * 64, str(tmp_path / "pipe"): "0" * 64}
    (folder / checkpoint.MANIFEST).write_text(json.dumps({"sha256": sums}))
    assert checkpoint.damage(folder) == ""


def test_a_pickle_in_the_place_of_tensors_or_state_is_not_run(whole: Path, tmp_path: Path) -> None:
    evil = pickle.dumps({"network/weight": Evil(tmp_path / "ran")})
    for name in (checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST):
        folder = shutil.copytree(whole / "checkpoints" / "step-3", tmp_path / name)
        (folder / name).write_bytes(evil)
        if name != checkpoint.MANIFEST:
            sign(folder)
        with pytest.raises(UserError):
            checkpoint.read(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [r'"a\0b"', "x" * 300, "x/" * 3000])
def test_a_run_dir_that_cannot_be_is_a_mistake(gloo_workers: GlooWorkers, name: str) -> None:
    [(code, errors)] = gloo_workers.run(1, train, name)
    assert code == 2
    assert errors.startswith("error: cannot ")
    assert "run_dir" in errors
    assert len(errors.splitlines()) == 1
