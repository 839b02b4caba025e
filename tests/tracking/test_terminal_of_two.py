"""A real run of two processes at a terminal, from the command to the prompt: all write to it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from terminal import ROOT, Terminal

from tl.tracking.footer import ROWS

pytestmark = pytest.mark.slow

STEPS = 24
SECONDS = 280
"""Two processes import torch, on cores that others may use."""


def launched(tmp_path: Path, event: str = "- 0 0 -") -> Terminal:
    command = [
        str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu",
        "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--main_process_port", "0", str(ROOT / "launch" / "train.py"),
        "data.source=digits", "data.image_size=32", "data.max_train=48", "data.max_val=8",
        "data.workers=0", "model.name=squeezenet1_1", "model.weights=null", "strategy=full",
        "objective=outside_objectives:Loud", "global_batch_size=4", "epochs=2",
        "tracking.log_every=1", "threads=1", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    return Terminal(
        command,
        TEST_EVENT=event,
        ACCELERATE_USE_CPU="true",
        WANDB_MODE="disabled",
        PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )


def lines_of(terminal: Terminal, rank: int) -> list[str]:
    return [row for row in terminal.everything() if row.startswith(f"rank {rank} writes")]


def shows_step(rows: list[str], least: int) -> bool:
    found = re.match(rf"phase full  epoch \d/2  step (\d+)/{STEPS} ", rows[-ROWS])
    return found is not None and int(found[1]) >= least


def test_what_both_write_stays_and_the_rows_are_whole_below_it(tmp_path: Path) -> None:
    with launched(tmp_path) as terminal:
        terminal.run_until(lambda rows: shows_step(rows, 14), SECONDS)
        first, training, evaluated = terminal.rows()[-ROWS:]
        assert re.search(r" ━+─* .*\d:\d\d left$", first)
        assert re.match(r"train  loss \S+  acc \S+  lr \S+  \S+ img/s  memory ", training)
        assert re.fullmatch(r"eval   val loss \S+  val acc \S+  best 0\.\d+ at step 12", evaluated)
        assert terminal.run_to_the_end(SECONDS) == 0
        steps = [f"{step / STEPS:.3f}" for step in range(STEPS)]
        for rank in (0, 1):
            said = [row.split()[3] for row in lines_of(terminal, rank)]
            assert said == steps, "each line is there, once and whole"
        rows = [row for row in terminal.everything() if row]
        assert not any("━━" in row and "left" in row for row in rows), "the rows are gone"
        [best] = [row for row in rows if row.startswith("  best ")]
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert best.split()[1] == str(summary["best_step"])
        assert "".join(rows[-3:]).endswith("run IMAGES"), "a long path goes on in the next row"
        assert (terminal.screen.cursor.hidden, terminal.screen.margins) == (False, None)


def test_the_error_of_another_process_is_whole_and_the_terminal_in_order(tmp_path: Path) -> None:
    with launched(tmp_path, event=f"full {14 / STEPS} 1 raise") as terminal:
        assert terminal.run_to_the_end(SECONDS) == 1
        rows = terminal.everything()
        text = "\n".join(rows)
        assert "error on rank 1: ValueError: out of luck" in text
        assert 'raise ValueError("out of luck")' in text, "and its traceback"
        [last] = [row for row in rows if re.match(r"phase full .* left$", row)]
        assert re.search(r"step 1[345]/24", last), "the last state stays"
        for rank in (0, 1):
            assert len(lines_of(terminal, rank)) == 15
        assert (terminal.screen.cursor.hidden, terminal.screen.margins) == (False, None)


def test_ctrl_c_stops_with_a_checkpoint_below_the_last_state(tmp_path: Path) -> None:
    with launched(tmp_path) as terminal:
        terminal.run_until(lambda rows: shows_step(rows, 4), SECONDS)
        terminal.type("\x03")
        terminal.run_to_the_end(SECONDS)
        rows = terminal.everything()
        [stops] = [i for i, row in enumerate(rows) if "stopping with a checkpoint" in row]
        [state] = [i for i, row in enumerate(rows) if re.match(r"phase full .* left$", row)]
        [stopped] = [i for i, row in enumerate(rows) if row.startswith("stopped after step ")]
        assert stops < state < stopped
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert (status["state"], status["exit_code"]) == ("preempted", 75)
        assert (terminal.screen.cursor.hidden, terminal.screen.margins) == (False, None)
