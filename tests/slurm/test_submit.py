"""`tl submit`: the text, the checks, and that no shell ever reads a value."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from slurm_cluster import NETWORK, Cluster, summary

from launch import submit as command
from tl.config import Config
from tl.errors import UserError
from tl.slurm.sbatch import clock
from tl.slurm.settings import JobSettings
from tl.slurm.submit import prepare, settings

GOLDEN = Path(__file__).parent / "golden"
QUICK = ["model.weights=null", "data.source=digits"]


def test_no_key_of_a_job_is_one_of_a_run() -> None:
    assert not JobSettings.model_fields.keys() & Config.model_fields.keys()


@pytest.mark.parametrize(
    ("name", "words", "swept"),
    [
        (
            "nodes",
            ["name=flowers", "nodes=4", "gpus_per_node=8", "time=1-12:00:00", "partition=gpu,long",
             "account=lab-7", "qos=high", "mem=512G", "constraint=a100&ib", "lead=300",
             "venv=/opt/envs/tl", "modules=cuda/12.4 gcc", "max_requeues=5", "cpus_per_node=96"],
            [],
        ),
        ("sweep", ["conda=tl", "container=~/images/tl.sif"], ["seed=0,1,2", "optimizer.lr=1e-2,1"]),
    ],
)  # fmt: skip
def test_the_text_is_the_golden_one(
    name: str, words: list[str], swept: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = prepare([*QUICK, *words, "run_dir=runs/it"], swept)
    text = f"{made.script}\n# {made.command()}\n".replace(str(tmp_path), "HERE")
    assert text == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("given", "slurms"),
    [("90s", "00:02:00"), ("90m", "01:30:00"), ("36h", "1-12:00:00"), ("2-00:00:00", "2-00:00:00")],
)
def test_times_are_written_as_slurm_does(given: str, slurms: str) -> None:
    assert clock(given) == slurms


HOSTILE = [
    "$(touch SENTINEL)", "`touch SENTINEL`", "x; touch SENTINEL", "x\ntouch SENTINEL", "'", '"',
    "x\n#SBATCH --wrap=touch", "x' ; touch SENTINEL ; '", "x && touch SENTINEL",
    "x | touch SENTINEL", "--wrap=touch SENTINEL", "-x", "\u202ex", "x\x00", "*", "x y", "",
]  # fmt: skip


@pytest.mark.parametrize("key", JobSettings.model_fields)
def test_a_setting_that_a_shell_could_read_otherwise_is_refused(key: str) -> None:
    for value in HOSTILE:
        if key == "modules" and value == "x y":
            continue
        with pytest.raises(UserError, match=rf"^{key}: "):
            settings([f"{key}={value}"])


@pytest.mark.parametrize("value", [v for v in HOSTILE if "\n" not in v and "\x00" not in v])
def test_an_argument_of_the_run_reaches_it_as_it_is(value: str, tmp_path: Path) -> None:
    """Through a batch script of the same text, run by bash; Slurm gives it the same arguments."""
    words = [*QUICK, f"data.classes=[{value!r}]", f"run_dir={tmp_path}/run"]
    made = prepare(words, [])
    script = tmp_path / "script"
    # All that the script does with its arguments is to hand them to a program as "$@".
    hands_on = [line for line in made.script.splitlines() if '"$@"' in line]
    assert [line.split(" begin ")[0] for line in hands_on if "begin" in line] == [
        'said=$("${within[@]}" python -m launch.slurm_job'
    ]
    script.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    done = subprocess.run(
        ["bash", script, *made.words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == list(made.words)
    assert not list(tmp_path.rglob("SENTINEL"))


@pytest.mark.slow
def test_a_real_job_gives_its_run_the_arguments_as_they_are(cluster: Cluster) -> None:
    hostile = ["$(touch SENTINEL)", "x; touch SENTINEL", "'\"` touch SENTINEL `"]
    name, group, tag = ("'" + value.replace("'", "''") + "'" for value in hostile)
    keys = [f"tracking.wandb.{k}" for k in (f"name={name}", f"group={group}", f"tags=[{tag}]")]
    script = Path(__file__).parents[2] / "slurm" / "cpu.sbatch"
    run_dir = cluster.folder / f"of {' '.join(hostile)}"
    job = cluster.submit(str(script), *NETWORK, "steps=1", *keys, f"run_dir={run_dir.name}")
    assert cluster.wait(job) == "COMPLETED", cluster.logs()
    assert summary(run_dir)["steps"] == 1
    asked = yaml.safe_load((run_dir / "config.yaml").read_text())["tracking"]["wandb"]
    assert [asked["name"], asked["group"], *asked["tags"]] == hostile
    assert not list(cluster.folder.rglob("SENTINEL"))


def test_a_line_feed_in_an_argument_is_refused() -> None:
    for words, swept in ((["run_dir=a\nb"], []), ([], ["seed=1\n,2"])):
        with pytest.raises(UserError, match="line feed"):
            prepare([*QUICK, *words], swept)


def test_a_mistake_in_any_run_of_a_sweep_is_found_before_it_queues() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        prepare(QUICK, ["optimizer.lr=0.1,fast"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nodes=0", "nodes: must be greater than 0"),
        ("nodes=two", "nodes: must be a valid integer"),
        ("time=5m", "leaves no time to train before lead=180 s"),
        ("mem=64GB", "mem: "),
        ("gpus_per_node=-1", "gpus_per_node: must be"),
    ],
)
def test_a_wrong_setting_is_said(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*QUICK, word, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_a_dry_run_shows_script_and_command_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([*QUICK, "nodes=2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --nodes=2\n" in out
    assert out.splitlines()[-1].startswith("# sbatch --parsable --output=")
    assert not list(tmp_path.iterdir())


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [*QUICK, f"run_dir={tmp_path}/run", "--no-check"]
    assert command.main(words) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_submitted_is_checked_queued_and_trained(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(cluster.folder)
    for name, value in cluster.environ.items():
        monkeypatch.setenv(name, value)
    words = [
        *NETWORK,
        "steps=2",
        "gpus_per_node=0",
        "cpus_per_node=1",
        "time=10m",
        "run_dir=runs/it",
    ]
    assert command.main(words) == 0
    out = capfd.readouterr().out
    assert "dry run: all of this checks out" in out
    job = out.partition("job ")[2].partition(":")[0]
    assert cluster.wait(job) == "COMPLETED"
    assert summary(cluster.folder / "runs" / "it")["steps"] == 2
    assert "the run is done" in (cluster.folder / "runs/it" / f"slurm-{job}.log").read_text()
    # The folder is taken now.
    assert command.main(words) == 2
    assert "holds another run" in capfd.readouterr().err


def test_a_checkpoint_that_does_not_fit_the_disk_is_said_before_it_queues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tl.engine import submit_checks

    monkeypatch.setattr(submit_checks, "free_bytes", lambda folder: 10_000_000)
    words = [*NETWORK, f"run_dir={tmp_path}/run", "time=1h"]
    assert command.main(words) == 2
    assert "checkpoints and models would take about" in capfd.readouterr().err


def test_a_disk_too_slow_for_the_time_to_save_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tl.engine import submit_checks

    monkeypatch.setattr(submit_checks, "_bytes_per_second", lambda folder: 20_000.0)
    assert command.main([*NETWORK, f"run_dir={tmp_path}/run", "time=1h"]) == 2
    assert "give lead=" in capfd.readouterr().err
