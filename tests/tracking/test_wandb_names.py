"""Names that mean something among fifty runs of a project, and groups of runs that belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.arguments import load
from tl.config.wandb import MOST_LETTERS, MOST_LETTERS_OF_A_TAG
from tl.tracking.wandb_names import group_name, run_name, swept_keys, tags_of


def config(*overrides: str) -> dict[str, Any]:
    return load(None, list(overrides), {}).config.model_dump()


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "head-resnet18-digits-seed0"),
        (
            ["strategy=last_stages(2)", "data.root=/data/flowers", "seed=3"],
            "last_stages(2)-resnet18-flowers-seed3",
        ),
        (["model.name=timm:vit_tiny", "data.source=torchvision:DTD"], "head-vit_tiny-DTD-seed0"),
        (
            ["objective=dann", "data.source_root=/d/photo", "data.target_root=/d/sketch"],
            "head-dann-resnet18-photo-to-sketch-seed0",
        ),
        (
            ["data.root=/d", "data.source_domains=[photo, art]", "data.target_domain=sketch"],
            "head-resnet18-photo+art-to-sketch-seed0",
        ),
        (
            ["phases=[{train: head, epochs: 1}, {name: rest, train: full}]"],
            "phase1+rest-resnet18-digits-seed0",
        ),
        (["data.target_root=/d/sketch", "strategy=full"], "full-resnet18-sketch-seed0"),
    ],
)
def test_a_name_says_what_was_trained(overrides: list[str], name: str) -> None:
    assert run_name(config(*overrides)) == name


def test_runs_of_a_sweep_are_told_apart_by_what_is_swept(tmp_path: Path) -> None:
    swept = {"swept": ["optimizer.lr=0.1,0.2", "seed=0,1"]}
    (tmp_path / "sweep.json").write_text(json.dumps(swept))
    keys = swept_keys(tmp_path / "003")
    assert keys == ["optimizer.lr", "seed"]
    name = run_name(config("optimizer.lr=0.2", "seed=1"), keys)
    assert name == "head-resnet18-digits-lr=0.2-seed1"
    assert swept_keys(tmp_path / "sweep" / "003") == []
    (tmp_path / "sweep.json").write_text("[]")
    assert swept_keys(tmp_path / "003") == []


@given(st.text(max_size=300), st.text(min_size=1, max_size=300), st.integers(0, 2**63 - 1))
def test_names_and_tags_are_what_wandb_takes_and_the_seed_stays(
    root: str, model: str, seed: int
) -> None:
    values = config()
    values["data"]["root"], values["model"]["name"], values["seed"] = f"/d/{root}", model, seed
    name = run_name(values)
    assert len(name) <= MOST_LETTERS
    assert name.endswith(f"-seed{seed}")
    assert name.isprintable()
    assert len(group_name(values, {})) <= MOST_LETTERS
    assert all(1 <= len(tag) <= MOST_LETTERS_OF_A_TAG for tag in tags_of(values))


def test_runs_that_differ_in_the_seed_alone_are_a_group() -> None:
    group = group_name(config(), {})
    assert group.startswith("head-resnet18-digits-")
    same = ["seed=7", "run_dir=there", "tracking.log_every=3", "data.workers=1", "threads=2",
            "checkpoint.keep=5", "tracking.wandb.tags=[a]"]  # fmt: skip
    assert group_name(config(*same), {}) == group
    for other in ("optimizer.lr=0.5", "epochs=3", "data.max_train=9", "cache.views=2"):
        assert group_name(config(other), {}) != group


def test_an_array_of_slurm_is_a_group() -> None:
    array = {"SLURM_JOB_NAME": "flowers", "SLURM_ARRAY_JOB_ID": "17", "SLURM_JOB_ID": "19"}
    assert group_name(config("seed=1"), array) == "flowers-17"
    assert group_name(config("optimizer.lr=0.5"), array) == "flowers-17"
    alone = {"SLURM_JOB_NAME": "flowers", "SLURM_JOB_ID": "19"}
    assert group_name(config(), alone) == group_name(config(), {})


def test_tags_are_what_runs_are_filtered_by() -> None:
    phases = "phases=[{train: head, objective: l2_sp}, {train: full, objective: mcc}]"
    assert tags_of(config(phases, "model.name=vgg11")) == [
        "phase1+phase2", "l2_sp", "mcc", "vgg11", "digits",
    ]  # fmt: skip
