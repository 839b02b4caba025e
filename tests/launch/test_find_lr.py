"""tl find-lr: the losses of the training loop, on any number of processes, and advice."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_workers import GlooWorkers
from PIL import Image

from launch.find_lr import main
from tl.arguments import load
from tl.engine import find_lr as engine_find_lr
from tl.engine import run as engine_run
from tl.errors import UserError
from tl.lr_curve import smoothed
from tl.tracking.jsonl import read
from tl.tracking.lr_plot import plot_lr_curve

ROOT = Path(__file__).parents[2]
# Dropout, augmentation, accumulation, and an epoch of 5 steps of which the last is a small one.
COMMON = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=37",
    "data.max_val=10",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "global_batch_size=8",
    "gradient_accumulation=2",
]
# Of float32 sums in another order; training only a head is convex and keeps it.
TOLERANCE = 1e-5


def found(output: str, overrides: list[str], steps: int, lr_max: float) -> dict[str, Any]:
    loaded = load(None, [*COMMON, *overrides], environ={})
    place = Path(output)
    return engine_find_lr.find_lr(loaded, steps=steps, lr_min=1e-4, lr_max=lr_max, output=place)


def curve_of(output: str, overrides: list[str], steps: int, lr_max: float) -> dict[str, Any]:
    """The same for so few steps that there is nothing to suggest."""
    with pytest.raises(UserError, match="no rate to suggest"):
        found(output, overrides, steps, lr_max)
    return json.loads(Path(output, "lr_curve.json").read_text())


def test_a_constant_rate_gives_the_losses_of_a_run(tmp_path: Path) -> None:
    """The same images, masks, objective and optimizer, step by step."""
    steps = 11
    almost = 1e-4 * (1 + 1e-12)
    result = curve_of(str(tmp_path / "out"), ["optimizer.weight_decay=0.01"], steps, almost)
    overrides = [f"steps={steps}", "optimizer.lr=0.0001", "optimizer.weight_decay=0.01"]
    overrides += ["schedule.name=constant", "tracking.trackers=[jsonl]", "tracking.log_every=1"]
    engine_run.run(load(None, [*COMMON, *overrides, f"run_dir={tmp_path / 'run'}"], environ={}))
    lines = read(tmp_path / "run" / "metrics.jsonl")
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == steps
    assert result["loss"] == pytest.approx(losses, rel=1e-6)


@pytest.mark.slow
def test_one_two_and_three_processes_give_the_same_curve(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    one, *_ = gloo_workers.run(1, found, str(tmp_path / "1"), [], 30, 30.0)
    for world_size in (2, 3):
        place = tmp_path / str(world_size)
        for result in gloo_workers.run(world_size, found, str(place), [], 30, 30.0):
            assert result["lr"] == one["lr"]
            assert result["loss"] == pytest.approx(one["loss"], rel=TOLERANCE)
            assert result["suggestion"] == one["suggestion"]
        assert json.loads((place / "lr_curve.json").read_text())["lr"] == one["lr"]
        assert sorted(p.name for p in place.iterdir()) == ["lr_curve.json", "lr_curve.png"]


def test_groups_of_parameters_keep_the_proportion_of_their_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """optimizer.lr itself does not matter, but what groups have of it does."""
    rates = []
    set_lr = engine_find_lr.set_lr

    def spied(optimizer: torch.optim.Optimizer, factor: float) -> float:
        highest = set_lr(optimizer, factor)
        rates.append([group["lr"] for group in optimizer.param_groups])
        return highest

    monkeypatch.setattr(engine_find_lr, "set_lr", spied)
    overrides = ["optimizer.lr=0.25", "gradient_accumulation=1", "strategy=layer_decay(0.5)"]
    result = curve_of(str(tmp_path / "out"), overrides, 10, 1.0)
    assert result["lr"] == pytest.approx(
        list(np.geomspace(1e-4, 1, 10))[: len(result["lr"])], rel=1e-12
    )
    for rate, of_groups in zip(result["lr"], rates, strict=True):
        expected = [rate * 0.5**depth for depth in range(10)]  # the head and nine stages before it
        assert sorted(of_groups, reverse=True) == pytest.approx(expected, rel=1e-5)


def test_a_strategy_that_has_to_see_the_network_is_spelled_out(tmp_path: Path) -> None:
    result = curve_of(str(tmp_path / "out"), ["strategy=auto", "gradient_accumulation=1"], 10, 1e-3)
    assert result["phase"]
    assert len(result["loss"]) == 10


def test_the_advice_is_a_key_that_a_run_takes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [*COMMON, "--steps", "30", "--lr-min", "1e-4", "--lr-max", "30"]
    assert main([*given, "--output", str(tmp_path / "a")]) == 0
    advice = capfd.readouterr().out.splitlines()[-1]
    curve = json.loads((tmp_path / "a" / "lr_curve.json").read_text())
    assert load(None, [advice], environ={}).config.optimizer.lr == curve["suggestion"]
    assert curve["smoothed"] == smoothed(curve["loss"])
    assert min(curve["lr"]) < curve["suggestion"] < max(curve["lr"])
    own = ["phases=[{name: probe, train: head, optimizer: {lr: 0.1}}]", "strategy=null"]
    assert main([*given, *own, "--output", str(tmp_path / "b")]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == f"phases.0.{advice}"
    again = json.loads((tmp_path / "b" / "lr_curve.json").read_text())
    assert again["loss"] == curve["loss"]  # nothing of the first one is left


def of_workers(output: str, overrides: list[str], event: str) -> Any:
    os.environ["TEST_EVENT"] = event
    try:
        return curve_of(output, overrides, 10, 1e-2)
    finally:
        del os.environ["TEST_EVENT"]


@pytest.mark.parametrize(
    ("objective", "event", "steps", "what"),
    [
        ("Eventful", "head 0.6 1 nan", 6, "the loss is not finite"),
        ("Poisoned", "- 0 0 -", 9, "the gradient is not finite"),  # in the last quarter
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_on_any_process_ends_it_on_all(
    gloo_workers: GlooWorkers, tmp_path: Path, objective: str, event: str, steps: int, what: str
) -> None:
    overrides = [f"objective=outside_objectives:{objective}"]
    results = gloo_workers.run(2, of_workers, str(tmp_path / "out"), overrides, event)
    assert results[0] == results[1] == json.loads((tmp_path / "out/lr_curve.json").read_text())
    assert len(results[0]["loss"]) == len(results[0]["lr"]) == steps
    assert results[0]["end"].startswith("stopped at rate")
    assert results[0]["end"].endswith(what)
    assert np.isfinite(results[0]["loss"]).all()


def test_a_first_loss_that_is_not_finite_is_a_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_EVENT", "head 0 0 inf")
    given = [*COMMON, "objective=outside_objectives:Eventful", "--lr-max", "0.1"]
    assert main([*given, "--output", str(tmp_path / "out")]) == 1
    assert "the loss is not finite. Give a lower --lr-min" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.name=squeezenet1_2"], "Did you mean 'squeezenet1_"),
        (["strategy=last_stages(99)"], "99"),
        (["optimizer.lr=0"], "optimizer.lr=0"),
        (["optimzer.lr=1"], "Did you mean 'optimizer.lr'?"),
        (["--lr-min", "1", "--lr-max", "0.1"], "--lr-min 1 is not below --lr-max 0.1"),
        (["--output", "FILE"], "is a file"),
        (["--lr-min", "5", "--lr-max", "1e4", "clip_norm=null"], "no rate to suggest"),
    ],
)
def test_mistakes(
    arguments: list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    output = ["--output", str(tmp_path / "out")]
    arguments = [word.replace("FILE", str(tmp_path / "file")) for word in arguments]
    assert main([*COMMON, *output, *arguments]) == 2
    said = capfd.readouterr().err
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize("option", ["0", "-1", "nan", "inf", "fast"])
def test_a_rate_is_a_number_above_zero(option: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--lr-max", option])
    assert caught.value.code == 2
    assert "no rate above 0" in capfd.readouterr().err


def test_a_picture_of_any_curve(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    curves: list[tuple[list[float], float | None]] = [
        ([1.0], None),
        ([0.0] * 12, 1e-4),
        ([2.0, 1.0, 1e30], 1e-6),
    ]
    for losses, advice in curves:
        rates = [1e-5 * 2.0**i for i in range(len(losses))]
        lowest = None if advice is None else 1
        plot_lr_curve(rates, losses, smoothed(losses), lowest, advice, "$x_ " + "long " * 30, path)
        assert Image.open(path).width > 600
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]


def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add_gradient, steps = engine_find_lr.add_gradient, iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return add_gradient(*arguments)

    monkeypatch.setattr(engine_find_lr, "add_gradient", interrupted)
    assert main([*COMMON, "--output", str(tmp_path / "out")]) == 1
    assert capfd.readouterr().err == "interrupted\n"
    assert list(tmp_path.iterdir()) == []
