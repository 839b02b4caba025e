"""Ctrl-C at a command that has nothing to go on from: one word, and no file of it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from .conftest import ROOT

DIGITS = ["data.source=digits", "data.image_size=32", "model.name=squeezenet1_1",
          "model.weights=null"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments", "works"),
    [
        ("find_lr", ["data.workers=2", "global_batch_size=8", "--steps", "100000"], "100000 steps"),
        ("rank", ["--output", "ranking.json"], "features of"),
    ],
)
def test_an_interruption_of_all_processes_leaves_nothing(tmp_path, command, arguments, works):
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "TL_"))}
    words = [sys.executable, ROOT / "launch" / f"{command}.py", *DIGITS, *arguments]
    with subprocess.Popen(
        words,
        cwd=tmp_path,
        env={**environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        for line in process.stdout:
            if works in line:
                break
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip() == "interrupted"
    assert list(tmp_path.iterdir()) == []
