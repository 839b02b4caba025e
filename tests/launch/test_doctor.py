"""tl doctor: it finds what would break a run, says so once, and what to do about it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gloo_workers import free_port

from launch import doctor
from tl.arguments import load
from tl.data.sources import open_source
from tl.engine.doctor.weights import weights
from tl.models import pins, published, zoo

from .conftest import ROOT, call_main

NAME = "shufflenet_v2_x0_5"


@pytest.fixture
def words(labelled: Path, tmp_path: Path) -> list[str]:
    """The command line of a run that would work."""
    return [
        f"data.root={labelled}",
        "data.image_size=32",
        f"model.name={NAME}",
        "model.weights=null",
        f"run_dir={tmp_path / 'runs' / 'a'}",
        f"cache.folder={tmp_path / 'cache'}",
    ]


def lines(out: str, kind: str) -> list[str]:
    return [line.strip() for line in out.splitlines() if line.startswith(f"  {kind} ")]


def test_where_all_is_well_it_says_so_and_leaves_nothing(words, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert doctor.main(words) == 0
    out = capsys.readouterr().out
    assert lines(out, "problem") == []
    looked_at = {line.split()[1] for line in lines(out, "ok")}
    assert looked_at >= {"versions", "precision", "cores", "run_dir", "cache", "port", "config"}
    assert f"torch {torch.__version__.partition('+')[0]}" in out
    config = load(None, words, environ={}).config
    source = open_source(config.data, config.seed)
    counts = np.bincount(source.train.labels)
    assert f"{len(source.train)} training and {len(source.val)} validation images" in out
    assert f"3 classes: Käfer, groß, ant, bee; {min(counts)} to {max(counts)} training" in out
    assert "\x1b" not in out  # no colours in a log
    assert "16 of 16 decoded" in out
    assert "no problems" in out
    new = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - set(before)}
    assert new <= {"cache"}  # the index of the folder, as every command leaves it there
    assert not (tmp_path / "runs").exists()


def test_without_a_config_data_and_weights_are_not_looked_at(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "all-reduce" in out
    assert "\nconfig" not in out


def test_two_processes_sum_report_their_node_and_share_the_images(gloo_workers, words, labelled):
    (labelled / "ant" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (labelled / "bee" / "empty.jpg").write_bytes(b"")
    (labelled / "bee" / "notes.txt").write_text("what else lies there")
    results = gloo_workers.run(2, call_main, "doctor", *words)
    assert [code for code, _, _ in results] == [1, 1]  # a problem, and all processes know
    out = results[0][1]
    assert results[1][1] == ""  # said once
    assert re.search(r"ranks 0, 1$", out, re.M)
    speed = re.search(r"gloo sums right over 2 processes; 16 MB take .* ([\d.]+) GB/s", out)
    assert speed is not None
    assert float(speed[1]) > 0
    assert "18 of 18 decoded" in out
    assert len(lines(out, "problem")) == 1
    assert "2 cannot be" in out
    assert "ant/broken.png: " in out
    assert "bee/empty.jpg: the file is empty" in out
    assert "data.bad_images=skip" in out
    assert "notes.txt" in out
    skipping = gloo_workers.run(2, call_main, "doctor", *words, "data.bad_images=skip")
    assert [code for code, _, _ in skipping] == [0, 0], skipping[0][1]
    too_many = [*words, "data.bad_images=skip", "data.max_bad_images=1"]
    assert doctor.main(too_many) == 1


def test_a_torch_that_cannot_be_imported_is_a_finding(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open the file')")
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, str(ROOT / "launch" / "doctor.py")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done
    assert "libcudart.so: cannot open the file" in done.stdout
    assert "→" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["optimizer.rate=1"], "optimizer.rate"),
        (["a.yaml", "b.yaml"], "one config at a time"),
        (["no/such.yaml"], "cannot read the config"),
        (["num_processes=7"], "num_processes=7 is configured, but 1 joined"),
    ],
)
def test_bad_input_ends_with_2(wrong, says, capsys):
    assert doctor.main(wrong) == 2
    assert says in capsys.readouterr().err


def test_the_number_of_images_is_a_number():
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--images", "-1"])
    assert ended.value.code == 2


def test_data_and_weights_that_are_not_there_are_problems(words, tmp_path, capsys):
    missing = [f"data.root={tmp_path / 'gone'}", f"model.weights={tmp_path / 'gone.pth'}"]
    assert doctor.main([*words, *missing]) == 1
    problems = lines(capsys.readouterr().out, "problem")
    assert [line.split()[1] for line in problems] == ["data", "weights"]


def test_a_file_where_a_folder_is_to_be_is_a_problem(words, tmp_path, capsys):
    (tmp_path / "runs").write_text("")
    assert doctor.main(words) == 1
    (line,) = lines(capsys.readouterr().out, "problem")
    assert "run_dir" in line


# ------------------------------------------------------------------------------------ weights


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: Any) -> Any:
    """Where weights of a server that has gone would be, with a config that names them."""
    url = f"http://127.0.0.1:{free_port()}/w.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(published, "entry", lambda *_: SimpleNamespace(url=url))
    loaded = load(None, [f"model.name={NAME}", "data.source=digits"], environ={})
    return SimpleNamespace(loaded=loaded, file=tmp_path / "torch/hub/checkpoints/w.pth")


def test_weights_that_are_neither_here_nor_to_be_had_are_a_problem(cached):
    (found,) = weights(cached.loaded, None)
    assert found.kind == "problem"
    assert "tl prefetch" in found.mend


def test_weights_are_what_was_pinned_or_a_problem(cached):
    cached.file.parent.mkdir(parents=True)
    torch.save(zoo.build(NAME, 1000).model.state_dict(), cached.file)
    pins.pin(cached.file)
    (found,) = weights(cached.loaded, None)
    assert found.kind == "ok"
    assert "as pinned" in found.text
    cached.file.write_bytes(cached.file.read_bytes() + b"more")
    (found,) = weights(cached.loaded, None)
    assert found.kind == "problem"
    assert "is not the one that was pinned" in found.text
