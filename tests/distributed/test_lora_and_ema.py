"""Runs with adapters and with averages: resumed, on any number of processes, and handed on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import GlooWorkers
from safetensors.torch import load_file
from torch import Tensor

from tl.arguments import load
from tl.engine import checkpoint
from tl.engine import run as engine_run
from tl.models import saved
from tl.models.adapters import ALPHA
from tl.tracking.jsonl import read

COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=14",
    "data.max_val=11",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=8",
    "checkpoint.keep=100",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
]
PHASES = (
    "phases=[{name: adapt, train: 'lora(2)', epochs: 2, ema: 0.5, optimizer: {lr: 0.01}},"
    " {name: tune, train: last_stages(3), epochs: 1, ema: 0.9, optimizer: {lr: 1e-3}}]"
)
ADAPTED, STEPS = 4, 6  # steps of the first phase, and of both
SAVES = "checkpoint.every_steps=1"


def run(run_dir: str, resume: str, *overrides: str) -> dict[str, Any]:
    loaded = load(None, [*COMMON, *overrides, f"run_dir={run_dir}"], environ={})
    return engine_run.run(loaded, resume=resume)


def tensors(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step}" / checkpoint.TENSORS)


def weights(folder: Path, which: str) -> dict[str, Tensor]:
    return load_file(folder / which / "model.safetensors")


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def whole(gloo_workers: GlooWorkers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    gloo_workers.run(1, run, str(folder), "never", PHASES, SAVES)
    return folder


def merged(state: dict[str, Tensor], adapters: str) -> dict[str, Tensor]:
    """The network of a checkpoint with its adapters in it, or with their average, in float64."""
    network = checkpoint.part("network", state)
    factors = checkpoint.part(adapters, state)
    for name, tensor in network.items():
        if f"{name}.lora_A" in factors:
            b, a = (factors[f"{name}.lora_{x}"].double() for x in "BA")
            network[name] = (tensor.double() + ALPHA / 2 * (b @ a).view(tensor.shape)).float()
        elif adapters == "ema" and name in factors:
            network[name] = factors[name]
    return network


def test_a_checkpoint_holds_the_base_the_adapters_and_the_average(whole: Path) -> None:
    first, later = tensors(whole, 1), tensors(whole, ADAPTED - 1)
    head = ("classifier.1.weight", "classifier.1.bias")
    for name in checkpoint.part("network", first):
        same = torch.equal(first[f"network/{name}"], later[f"network/{name}"])
        assert same == (name not in head), name
    adapters = checkpoint.part("lora", later)
    assert adapters
    assert set(checkpoint.part("ema", later)) == {*adapters, *head}
    assert all(f"optimizer/{name}/momentum_buffer" in later for name in adapters)
    over = tensors(whole, ADAPTED)
    assert set(over) == {f"network/{name}" for name in weights(whole, "last")}


def test_the_next_phase_starts_with_the_average_and_the_adapters_in_it(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """Against B, A and their average after three of four steps, and a last step at rate zero."""
    phases = (
        "phases=[{name: adapt, train: 'lora(2)', epochs: 2, ema: 0.5, optimizer: {lr: 0.01},"
        " schedule: {name: step, step_epochs: 1, gamma: 1.0e-30}},"
        " {name: tune, train: head, steps: 1, optimizer: {lr: 0.0}}]"
    )
    gloo_workers.run(1, run, str(tmp_path / "run"), "never", phases, SAVES)
    before, after = tensors(tmp_path / "run", ADAPTED - 1), tensors(tmp_path / "run", ADAPTED)
    live = checkpoint.part("lora", before) | checkpoint.part("network", before)
    for name, shadow in checkpoint.part("ema", before).items():  # the last step but its rate
        decay = min(0.5, (1 + 3) / (10 + 3))
        before[f"ema/{name}"] = shadow + (1 - decay) * (live[name] - shadow)
    expected = merged(before, "ema")
    for name, tensor in checkpoint.part("network", after).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    last = weights(tmp_path / "run", "last")
    assert_equal(last, checkpoint.part("network", after))


@pytest.mark.parametrize(
    "step",
    [3, 4, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))],
)
def test_a_resumed_run_ends_with_the_same_bits(
    gloo_workers: GlooWorkers, whole: Path, tmp_path: Path, step: int
) -> None:
    """Weights, best model, average, adapters and optimizer, from within each phase and between."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for later in (folder / "checkpoints").iterdir():
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "model")
    best = json.loads((whole / "summary.json").read_text())["best_step"]
    if best < step:  # then it was written long before
        shutil.copytree(whole / "model", folder / "model")
    gloo_workers.run(1, run, str(folder), "auto", PHASES, SAVES)
    for which in ("last", "model"):
        assert_equal(weights(folder, which), weights(whole, which))
    for n in range(step + 1, STEPS + 1):
        assert_equal(tensors(folder, n), tensors(whole, n))


def test_the_best_model_is_what_was_evaluated_and_a_plain_one(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """At the end of the first epoch, in the middle of the phase, and made up after a death."""
    folder = tmp_path / "run"
    phases = (
        "phases=[{name: adapt, train: 'lora(2)', epochs: 2, ema: 0.5, optimizer: {lr: 0.01},"
        " schedule: {name: constant}}]"
    )
    gloo_workers.run(1, run, str(folder), "never", phases, SAVES, "data.max_val=40")
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    shutil.rmtree(folder / "model")
    (folder / "summary.json").unlink()
    [line] = [x for x in read(folder / "metrics.jsonl") if x["step"] == 2 and "val/loss" in x]
    gloo_workers.run(1, _make_up, str(folder), phases)
    model = saved.load(folder)
    expected = merged(tensors(folder, 2), "ema")
    for name, tensor in model.network.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    report = evaluated(folder)
    assert report["accuracy"] == line["val/accuracy"]
    assert report["loss"] == pytest.approx(line["val/loss"], rel=1e-5)


def _make_up(folder: str, phases: str) -> None:
    """Go on, and stop after no step."""
    (Path(folder) / "stop").touch()
    with contextlib.suppress(Exception):
        run(folder, "auto", phases, SAVES, "data.max_val=40")


def evaluated(folder: Path) -> dict[str, Any]:
    from launch import evaluate

    with contextlib.redirect_stdout(io.StringIO()):
        assert evaluate.main([str(folder)]) == 0
    return json.loads((folder / "evaluation" / "evaluation.json").read_text())


def records(folder: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    lines = read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], rel: float) -> None:
    """Losses to rounding, all else as it is."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            expected = pytest.approx(value, rel=rel, abs=rel) if "loss" in key else value
            assert mine[key] == expected, (key, mine, other)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_losses_are_those_of_one_process(
    gloo_workers: GlooWorkers, whole: Path, tmp_path: Path, world_size: int
) -> None:
    """Float32 sums in another order, over six steps."""
    gloo_workers.run(world_size, run, str(tmp_path / "run"), "never", PHASES)
    assert_same(records(tmp_path / "run"), records(whole), 2e-3)


def test_a_run_goes_on_with_another_number_of_processes(
    gloo_workers: GlooWorkers, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for later in (folder / "checkpoints").iterdir():
        if int(later.name.removeprefix("step-")) > 3:
            shutil.rmtree(later)
    (folder / "summary.json").unlink()
    gloo_workers.run(2, run, str(folder), "auto", PHASES, SAVES)
    assert_same(records(folder), records(whole), 2e-3)


def test_averaged_batchnorm_is_that_of_the_main_process(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    """Each process has statistics of its own images; what is evaluated is the same on all."""
    overrides = (
        "model.name=shufflenet_v2_x0_5", "strategy=last_stages(2)", "epochs=1", "ema=0.9",
    )  # fmt: skip
    one, two = gloo_workers.run(2, run, str(tmp_path / "run"), "never", *overrides, SAVES)
    assert one["val/loss"] == two["val/loss"]
    names = checkpoint.part("ema", tensors(tmp_path / "run", 1))
    assert any(name.endswith("running_var") for name in names)
    assert evaluated(tmp_path / "run")["loss"] == pytest.approx(one["val/loss"], rel=1e-5)


def test_features_before_the_adapters_are_kept_and_change_no_loss(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    overrides = (r"strategy=lora(2, features\.1[0-2])", "augment=none", "epochs=2", "ema=0.9")
    said = {}
    for keep in ("true", "false"):
        folder = tmp_path / keep
        [said[keep]] = gloo_workers.run(
            1, _said, str(folder), *overrides, f"cache.features={keep}",
            f"cache.folder={tmp_path / 'cache'}",
        )  # fmt: skip
    assert "frozen prefix, without autograd: stem to fire6" in said["true"]
    assert "features of training images are kept" in said["true"]
    assert_same(records(tmp_path / "true"), records(tmp_path / "false"), 1e-4)


def _said(run_dir: str, *overrides: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run(run_dir, "never", *overrides, "tracking.trackers=[jsonl,console]")
    return said.getvalue()


def test_a_left_out_step_moves_neither_adapters_nor_average(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    overrides = (
        "phases=[{name: only, train: 'lora(2)', steps: 4, ema: 0.5, optimizer: {lr: 0.01}}]",
        "objective=outside_objectives:Eventful", "nonfinite=skip(1)",
    )  # fmt: skip
    gloo_workers.run(1, _with_nan, str(tmp_path / "run"), *overrides, SAVES)
    assert_equal(tensors(tmp_path / "run", 3), tensors(tmp_path / "run", 2))
    before, after = (checkpoint.part("ema", tensors(tmp_path / "run", n)) for n in (1, 2))
    assert not any(torch.equal(before[name], after[name]) for name in after if "_B" in name)


def _with_nan(run_dir: str, *overrides: str) -> None:
    os.environ["TEST_EVENT"] = "only 0.5 0 nan"
    try:
        run(run_dir, "never", *overrides)
    finally:
        del os.environ["TEST_EVENT"]


def test_a_summary_counts_adapters_as_trained(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    adapters = sum(t.numel() for t in checkpoint.part("lora", tensors(whole, 1)).values())
    last = weights(whole, "last")
    tuned = ("features.12.", "features.11.", "classifier.")
    trained = sum(t.numel() for name, t in last.items() if name.startswith(tuned))
    assert summary["trainable_parameters"] == trained + adapters
    assert summary["frozen_parameters"] == sum(t.numel() for t in last.values()) - trained
    assert summary["frozen_unchanged"] is True


def test_adapters_of_another_checkpoint_are_refused(
    gloo_workers: GlooWorkers, whole: Path, tmp_path: Path
) -> None:
    from gloo_workers import WorkerError
    from safetensors.torch import save_file

    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    for later in (folder / "checkpoints").iterdir():
        if later.name != "step-1":
            shutil.rmtree(later)
    place = folder / "checkpoints" / "step-1"
    changed = tensors(folder, 1)
    name = next(name for name in changed if name.startswith("lora/"))
    del changed[name]
    save_file(changed, place / checkpoint.TENSORS)
    sums = {n: checkpoint.sha256(place / n) for n in (checkpoint.TENSORS, checkpoint.STATE)}
    (place / checkpoint.MANIFEST).write_text(json.dumps({"sha256": sums}))
    with pytest.raises(WorkerError, match="the checkpoint holds other adapters") as caught:
        gloo_workers.run(1, run, str(folder), "auto", PHASES, SAVES)
    assert caught.value.kind == "UserError"
