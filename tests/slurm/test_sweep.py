"""The runs of a sweep, and their table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.errors import UserError
from tl.slurm import sweep

keys = st.from_regex(r"[a-z]{1,5}", fullmatch=True)
values = st.lists(st.from_regex(r"[a-z0-9.\-]{1,6}", fullmatch=True), min_size=1, max_size=4)


def test_every_combination_is_a_run_and_the_last_key_varies_fastest() -> None:
    assert sweep.combinations(["optimizer.lr=1e-3,1e-2", "seed=0,1"]) == [
        ["optimizer.lr=1e-3", "seed=0"],
        ["optimizer.lr=1e-3", "seed=1"],
        ["optimizer.lr=1e-2", "seed=0"],
        ["optimizer.lr=1e-2", "seed=1"],
    ]


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), values, min_size=1, max_size=3)
)
def test_there_are_as_many_runs_as_combinations(axes: dict[str, list[str]]) -> None:
    words = [f"{key}={','.join(of_key)}" for key, of_key in axes.items()]
    runs = sweep.combinations(words)
    expected = 1
    for of_key in axes.values():
        expected *= len(of_key)
    assert len(runs) == expected
    common = ["config.yaml", "epochs=1"]
    tasks = [sweep.of_task([*common, "--sweep", *words], n) for n in range(expected)]
    assert tasks == [[*common, *run] for run in runs]


def test_a_comma_in_brackets_is_part_of_a_value() -> None:
    assert sweep.combinations(["optimizer.betas=[0.9, 0.99],[0.8, 0.9]"]) == [
        ["optimizer.betas=[0.9, 0.99]"],
        ["optimizer.betas=[0.8, 0.9]"],
    ]
    assert sweep.combinations(["strategy=last_stages(2),lora(4, x)"]) == [
        ["strategy=last_stages(2)"],
        ["strategy=lora(4, x)"],
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes key=value,value"),
        (["seed"], "'seed' is no key=value,value"),
        (["seed="], "'seed=' is no key=value,value"),
        (["seed=1,,2"], "is no key=value,value"),
        (["seed=1", "seed=2"], "seed is there twice"),
    ],
)
def test_what_is_no_sweep_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sweep.combinations(words)


def test_a_task_that_the_sweep_has_not_is_told_how_many_there_are() -> None:
    with pytest.raises(UserError, match=r"has 3 runs, and this is task 3: .* --array=0-2"):
        sweep.of_task(["--sweep", "seed=0,1,2"], 3)


def test_the_table_has_the_best_first_and_then_what_is_not_done(tmp_path: Path) -> None:
    for task, (accuracy, state) in enumerate([(0.5, "done"), (None, "running"), (0.75, "done")]):
        folder = tmp_path / f"{task:03}"
        folder.mkdir()
        (folder / "status.json").write_text(json.dumps({"state": state, "step": 7}))
        if accuracy is not None:
            found = {"best_metric": "val/accuracy", "val/accuracy": accuracy}
            (folder / "summary.json").write_text(json.dumps(found))
    made = sweep.table(["seed=0,1,2,3"], tmp_path)
    assert made == (
        "| seed | val/accuracy | state | step | run |\n"
        "| --- | --- | --- | --- | --- |\n"
        f"| 2 | 0.75 | done | 7 | {tmp_path}/002 |\n"
        f"| 0 | 0.5 | done | 7 | {tmp_path}/000 |\n"
        f"| 1 |  | running | 7 | {tmp_path}/001 |\n"
        f"| 3 |  | waiting |  | {tmp_path}/003 |"
    )


def test_of_a_loss_the_smallest_is_the_best(tmp_path: Path) -> None:
    for task, loss in enumerate([0.5, 0.25]):
        folder = tmp_path / f"{task:03}"
        folder.mkdir()
        found = {"best_metric": "val/loss", "val/loss": loss}
        (folder / "summary.json").write_text(json.dumps(found))
    rows = sweep.table(["seed=0,1"], tmp_path).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["0.25", "0.5"]
