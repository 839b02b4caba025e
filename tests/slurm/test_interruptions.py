"""What Slurm does to jobs, done to real ones: a run ends cleanly, or goes on as if nothing was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import (
    ROOT,
    SLOW,
    Cluster,
    environment,
    left_running,
    newest,
    record,
    summary,
)

pytestmark = pytest.mark.slow
SCRIPT = f"{ROOT}/slurm/cpu.sbatch"
UP = ROOT.parent / "shared" / "slurm-cluster" / "up"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    command = [sys.executable, "-m", "launch.train", *SLOW, f"run_dir={folder}", "threads=1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def assert_as_if_nothing_was(ours: Path, whole: Path) -> None:
    """One process with one thread: bit for bit."""
    mine, theirs = summary(ours), summary(whole)
    assert mine["model_sha256"] == theirs["model_sha256"]
    assert mine["val/loss"] == theirs["val/loss"]
    trained = [[line for line in record(run) if "train/loss" in line] for run in (ours, whole)]
    assert trained[0] == trained[1]


def begin(cluster: Cluster, *options: str, step: int = 3, **environ: str) -> tuple[str, Path]:
    """Submit the run, and wait until it is at a step. One process has one thread, to be exact."""
    run_dir = cluster.folder / "run"
    job = cluster.submit(*options, SCRIPT, *SLOW, "threads=1", f"run_dir={run_dir}", **environ)
    cluster.until_step(job, run_dir, step)
    assert left_running(run_dir)
    return job, run_dir


def status(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "status.json").read_text())


def test_a_job_whose_time_is_short_queues_again_and_goes_on(cluster: Cluster, whole: Path) -> None:
    job, run_dir = begin(cluster)
    cluster.command("scancel", "--signal=USR1", "--batch", job)  # as --signal=B:USR1@ does
    cluster.until(lambda: "requeued, 1 of 20" in cluster.logs(), 60, job)
    assert status(run_dir)["state"] == "preempted"
    run_id = (run_dir / "run_id").read_text()
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert cluster.shown(job, "Restarts") == "1"
    assert (run_dir / "run_id").read_text() == run_id  # and so the run in Weights & Biases
    assert "going on after step" in cluster.logs()
    assert_as_if_nothing_was(run_dir, whole)
    assert not left_running(run_dir)


def test_the_time_limit_itself_is_met_with_a_requeue(cluster: Cluster) -> None:
    """The controller looks at limits every 30 s, so the news comes 10 to 40 s after the start."""
    words = [word for word in SLOW if not word.startswith("steps=")]
    options = ("--time=1", "--signal=B:USR1@20")
    longer = [*words, "steps=200", "threads=1", "run_dir=run", "time_limit=none"]
    job = cluster.submit(*options, SCRIPT, *longer)
    cluster.until(lambda: "requeued, 1 of 20" in cluster.logs(), 120, job)
    assert "TIME LIMIT" not in cluster.logs()


def test_two_processes_on_each_of_two_nodes_go_on_as_well(cluster: Cluster, whole: Path) -> None:
    job, run_dir = begin(cluster, "--nodes=2", JOB_PROCESSES="2")
    cluster.command("scancel", "--signal=USR1", "--batch", job)
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert cluster.shown(job, "Restarts") == "1"
    ours, theirs = summary(run_dir), summary(whole)
    assert ours["num_processes"] == 4
    # Float32 sums in another order, over 24 steps.
    assert ours["val/loss"] == pytest.approx(theirs["val/loss"], rel=1e-4)
    assert not left_running(run_dir)


def test_a_job_that_is_cancelled_leaves_a_checkpoint_and_does_not_queue_again(
    cluster: Cluster,
) -> None:
    job, run_dir = begin(cluster, "--nodes=2", JOB_PROCESSES="2")
    cluster.command("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    cluster.until(lambda: not left_running(run_dir), 30, job)
    assert status(run_dir)["state"] == "preempted", cluster.logs()
    assert newest(run_dir) >= 3
    assert cluster.shown(job, "Restarts") == "0"


@pytest.mark.parametrize("partition", ["low", "grace"])
def test_a_job_makes_way_for_another_one_and_goes_on_after_it(
    cluster: Cluster, whole: Path, partition: str
) -> None:
    if partition not in cluster.command("sinfo", "--noheader", "--format=%R").split():
        pytest.skip(f"the cluster has no partition {partition} whose jobs are preempted")
    whole_node = ("--exclusive", "--nodelist=n1")
    part = f"--partition={partition}"
    job, run_dir = begin(cluster, part, *whole_node, JOB_PROCESSES="1")
    other = cluster.submit("--partition=main", *whole_node, "--wrap=sleep 5")
    assert cluster.wait(other) == "COMPLETED"
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert int(cluster.shown(job, "Restarts")) >= 1
    assert_as_if_nothing_was(run_dir, whole)
    assert not left_running(run_dir)


def test_a_rank_that_is_killed_ends_the_job_with_an_error(cluster: Cluster) -> None:
    job, run_dir = begin(cluster, "--nodes=2", JOB_PROCESSES="2")
    ranks = [line for line in left_running(run_dir) if "python3 -u -m launch.train" in line]
    assert len(ranks) == 4
    os.kill(int(ranks[-1].split()[0]), signal.SIGKILL)
    assert cluster.wait(job, 120) == "FAILED", cluster.logs()
    assert "the run has failed" in cluster.logs()
    cluster.until(lambda: not left_running(run_dir), 30, job)
    assert newest(run_dir) >= 3  # the same command goes on from there


def test_a_job_is_requeued_no_more_often_than_it_may(cluster: Cluster) -> None:
    job, run_dir = begin(cluster, MAX_REQUEUES="0")
    cluster.command("scancel", "--signal=USR1", "--batch", job)
    assert cluster.wait(job) == "FAILED"
    assert "requeued 0 times already: not requeued" in cluster.logs()
    assert status(run_dir)["state"] == "preempted"


def test_the_last_task_of_an_array_queues_again_alone(cluster: Cluster) -> None:
    """Its own job id is that of the whole array: by that, all would begin again."""
    words = [*SLOW, "threads=1", "run_dir=sweep", "--sweep", "seed=0,1"]
    job = cluster.submit("--array=0-1", SCRIPT, *words)
    runs = [cluster.folder / "sweep" / name for name in ("000", "001")]
    for run_dir in runs:
        cluster.until_step(job, run_dir, 3)
    cluster.command("scancel", "--signal=USR1", "--batch", f"{job}_1")
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    logs = cluster.logs()
    assert logs.count("requeued, 1 of 20") == 1
    assert logs.count("going on after step") == 1
    assert [summary(run_dir)["steps"] for run_dir in runs] == [24, 24]


@pytest.fixture
def cluster_of_its_own(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One that a node may be lost of."""
    folder = tmp_path_factory.mktemp("own")
    environ = {**environment(), "CLUSTER_SLURMD_TIMEOUT": "10", "CLUSTER_NODES": "3"}
    done = subprocess.run(
        [UP, folder / "c"], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    pairs = (word.split("=", 1) for word in done.stdout.split() if "=" in word)
    yield Cluster(cluster.folder, {**environment(), **dict(pairs)})
    subprocess.run(
        [UP.with_name("down"), folder / "c"], check=True, capture_output=True, timeout=60
    )


def test_a_run_goes_on_without_a_node_that_is_lost(cluster_of_its_own: Cluster) -> None:
    cluster = cluster_of_its_own
    job, run_dir = begin(cluster, "--nodes=2", JOB_PROCESSES="1")
    lost = cluster.shown(job, "BatchHost")
    folder = Path(cluster.environ["SLURM_TEST_CLUSTER"])
    os.kill(int((folder / "run" / f"{lost}.init").read_text()), signal.SIGKILL)
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert cluster.shown(job, "Restarts") == "1"
    assert summary(run_dir)["steps"] == 24
    assert summary(run_dir)["num_processes"] == 2
    assert not left_running(run_dir)
