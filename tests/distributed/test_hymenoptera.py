"""The classic recipes on real images with real ImageNet weights, on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gloo_workers import GlooWorkers

from tl.arguments import load
from tl.engine import run as engine_run

CONFIGS = Path(__file__).parents[2] / "configs"


def run(config: str, shared: str, run_dir: str, seed: int) -> dict[str, Any]:
    overrides = [
        f"data.root={shared}/data/hymenoptera",
        "model.name=squeezenet1_0",
        f"model.weights={shared}/weights/squeezenet1_0-imagenet.pth",
        "tracking.trackers=[jsonl]",
        f"run_dir={run_dir}",
        f"seed={seed}",
    ]
    return engine_run.run(load(CONFIGS / f"{config}.yaml", overrides, environ={}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "seed", "least", "trainable"),
    [
        # Seed 1 of the second is the one whose head died in a plain PyTorch loop, at 0.458.
        ("feature_extractor", 0, 0.86, 1_026),
        ("finetune", 1, 0.78, 736_450),
    ],
)
def test_a_classic_recipe_reaches_what_is_promised(
    gloo_workers: GlooWorkers,
    shared: Path,
    tmp_path: Path,
    config: str,
    seed: int,
    least: float,
    trainable: int,
) -> None:
    """Measured over three seeds: 0.86 to 0.91 (head) and 0.86 to 0.91 (all layers)."""
    [summary, _] = gloo_workers.run(2, run, config, str(shared), str(tmp_path / "run"), seed)
    assert summary["val/accuracy"] >= least
    assert summary["trainable_parameters"] == trainable
    assert summary["images"] == 3 * 244
    assert summary["steps"] == 3 * 61
