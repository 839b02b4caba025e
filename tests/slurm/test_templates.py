"""The scripts in slurm/, submitted unchanged to a real cluster."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import NETWORK, ROOT, Cluster, environment, left_running, record, summary

from tl.slurm.templates import FOLDER, TEMPLATES, text

# Float32 sums in another order, over some steps.
TOLERANCE = 1e-4
RUN = [*NETWORK, "epochs=2"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process, without Slurm."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    command = [sys.executable, "-m", "launch.train", *RUN, f"run_dir={folder}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same(ours: Path, reference: Path, num_processes: int) -> None:
    mine, theirs = record(ours), record(reference)
    assert len(mine) == len(theirs)
    for line, expected in zip(mine, theirs, strict=True):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            exact = isinstance(value, int | str)
            near = value if exact else pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)
            assert line[key] == near, (key, line, expected)
    assert summary(ours)["num_processes"] == num_processes


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_lies_in_slurm_is_what_is_rendered(name: str) -> None:
    assert (FOLDER / f"{name}.sbatch").read_text() == text(name), "python -m tl.slurm.templates"


@pytest.mark.parametrize("name", TEMPLATES)
def test_shellcheck_finds_nothing(name: str) -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}")
    assert checker is not None, "pip install -e '.[test]'"
    script = str(FOLDER / f"{name}.sbatch")
    done = subprocess.run([checker, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("template", "options", "num_processes"),
    [
        ("cpu", ["--nodes=2"], 4),
        ("debug", [], 1),
        ("single_node", ["--gpus-per-node=2"], 2),
        ("multi_node", ["--gpus-per-node=2"], 4),
    ],
)
@pytest.mark.slow
def test_a_run_by_a_template_is_that_of_one_process(
    cluster: Cluster, alone: Path, template: str, options: list[str], num_processes: int
) -> None:
    more = {"JOB_PROCESSES": "2"} if template == "cpu" else {}
    job = cluster.submit(*options, f"{ROOT}/slurm/{template}.sbatch", *RUN, **more)
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    [run_dir] = (cluster.folder / "runs").iterdir()
    assert run_dir.name.endswith(f"-{job}")
    assert_same(run_dir, alone, num_processes)
    assert "the run is done" in cluster.logs()
    if num_processes > 1:
        logs = sorted(path.relative_to(run_dir) for path in run_dir.glob("logs/**/stdout.log"))
        assert len(logs) == num_processes
    assert not left_running(run_dir.relative_to(cluster.folder))


@pytest.mark.slow
def test_an_array_is_a_sweep_with_a_table(cluster: Cluster) -> None:
    script = f"{ROOT}/slurm/array.sbatch"
    words = [*RUN, "--sweep", "optimizer.lr=0.01,0.001", "seed=0,1"]
    job = cluster.submit("--gpus-per-node=1", script, *words)
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    [sweep_dir] = (cluster.folder / "runs").iterdir()
    rows = (sweep_dir / "table.md").read_text().splitlines()
    assert rows[0].split(" | ")[:3] == ["| optimizer.lr", "seed", "val/accuracy"]
    cells = [row.strip("| ").split(" | ") for row in rows[2:]]
    assert {(lr, seed) for lr, seed, *_ in cells} == {
        (lr, seed) for lr in ("0.01", "0.001") for seed in ("0", "1")
    }
    assert [state for *_, state, _, _ in cells] == ["done"] * 4
    reached = [summary(cluster.folder / run)["val/accuracy"] for *_, run in cells]
    assert reached == sorted(reached, reverse=True)


@pytest.mark.slow
def test_a_port_that_is_taken_is_passed_over(cluster: Cluster) -> None:
    words = ["--nodes=2", "--hold", f"{ROOT}/slurm/cpu.sbatch", *RUN]
    job = cluster.submit(*words, JOB_PROCESSES="1")
    port = 20000 + int(job) % 10000
    listen = f"import socket, time; s = socket.create_server(('', {port})); time.sleep(300)"
    other = cluster.submit("--nodelist=n1", f'--wrap=exec {sys.executable} -c "{listen}"')
    cluster.until(lambda: cluster.states(other)[other] == "RUNNING", 30, other)
    cluster.command("scontrol", "release", job)
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert f"port {port} of n1 is taken" in cluster.logs()
    cluster.command("scancel", other)
