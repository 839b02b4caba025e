"""What a job's script is told of its run as it begins, and what it does as the run has ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import slurm_job
from tl.cores import cores_of_node
from tl.errors import UserError
from tl.slurm.job import begin, end

JOB = {"SLURM_JOB_NAME": "flowers", "SLURM_JOB_ID": "17"}
TASK = {**JOB, "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_without_a_folder_has_that_of_its_job_each_time_it_begins() -> None:
    for _ in range(2):
        assert begin("17", ["seed=3"], JOB) == [
            "runs/flowers-17",
            "-1",
            "seed=3",
            "run_dir=runs/flowers-17",
        ]
    Path("runs/flowers-17/checkpoints/step-40").mkdir(parents=True)
    assert begin("17", ["seed=3"], JOB)[1] == "40"


def test_a_folder_that_is_given_is_kept(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("run_dir: from-file\nseed: 1\n")
    assert begin("17", [str(config)], JOB)[0] == "from-file"
    assert begin("17", [str(config), "run_dir=mine"], JOB)[0] == "mine"
    assert begin("17", [], {**JOB, "TL_RUN_DIR": "of-variable"})[0] == "of-variable"


def test_a_mistake_is_said_before_any_node_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm_job.main(["begin", "17", "sede=3"]) == 2
    assert "Did you mean 'seed'" in capsys.readouterr().err
    assert slurm_job.main(["begin", "17", "seed=3", "--sweep", "seed=1,2"]) == 2
    assert "is for an array" in capsys.readouterr().err
    with pytest.raises(UserError, match="line feed"):
        begin("17", ["run_dir=a\nb"], JOB)


def test_a_task_of_an_array_has_its_values_and_a_folder_in_that_of_the_sweep() -> None:
    words = ["epochs=1", "--sweep", "optimizer.lr=0.1,0.2", "seed=0,1"]
    told = begin("17_1", words, TASK)
    folder = "runs/flowers-17/001"
    assert told == [folder, "-1", "epochs=1", "optimizer.lr=0.1", "seed=1", f"run_dir={folder}"]
    assert begin("17_1", ["run_dir=mine", *words], TASK)[0] == "mine/001"
    with pytest.raises(UserError, match="has 4 runs"):
        begin("17_9", words, {**TASK, "SLURM_ARRAY_TASK_ID": "9"})


def test_a_script_that_is_told_nothing_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        slurm_job.main([])
    assert stopped.value.code == 2
    capsys.readouterr()


def test_a_task_that_ends_brings_the_table_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    [folder, *_] = begin("17_1", ["--sweep", "seed=0,1"], TASK)
    Path(folder).mkdir()
    status = {"state": "done", "exit_code": 0, "step": 7, "message": ""}
    Path(folder, "status.json").write_text(json.dumps(status))
    found = {"best_metric": "val/accuracy", "val/accuracy": 0.5}
    Path(folder, "summary.json").write_text(json.dumps(found))
    code = end(Path(folder), -1, 0, max_requeues=3, asked=False, ended=False, environ=TASK)
    assert code == 0
    table = Path("runs/flowers-17/table.md").read_text()
    assert table.splitlines()[2] == f"| 1 | 0.5 | done | 7 | {folder} |"
    assert table in capsys.readouterr().out


def test_requeues_are_counted_by_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = Path("run")
    (run_dir / "checkpoints" / "step-8").mkdir(parents=True)
    status = {"state": "preempted", "exit_code": 75, "step": 8, "message": "stopped"}
    (run_dir / "status.json").write_text(json.dumps(status))
    words = ["end", "run", "3", "1", "--max-requeues", "2", "--asked"]
    assert slurm_job.main(words) == 75
    for count, code in (("1", 75), ("2", 1)):
        environ = {**JOB, "SLURM_RESTART_COUNT": count}
        assert end(run_dir, 3, 1, max_requeues=2, asked=True, ended=False, environ=environ) == code
    capsys.readouterr()


def test_slurm_grants_no_more_cores_than_it_says() -> None:
    all_of_them = cores_of_node({})
    assert all_of_them >= 1
    assert cores_of_node({"SLURM_CPUS_ON_NODE": "1"}) == 1
    assert cores_of_node({"SLURM_CPUS_ON_NODE": str(all_of_them + 7)}) == all_of_them
    for nothing in ("", "0", "many"):
        assert cores_of_node({"SLURM_CPUS_ON_NODE": nothing}) == all_of_them
