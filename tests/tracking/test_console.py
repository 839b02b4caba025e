"""What people see in a log, and in a pipe that closes; test_terminal.py has terminals."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import environment

from tl.tracking.console import open_console, seconds_between_lines
from tl.tracking.plan import PhasePlan
from tl.tracking.progress_line import duration
from tl.tracking.tracker import RunInfo

PROGRAM = """
import sys, time
from pathlib import Path
from tl.tracking.console import open_console
from tl.tracking.tracker import RunInfo

how = sys.argv[1]
with open_console() as console:
    console.say("a message [of] two \\x1b[31m words")
    console.start(RunInfo({}, Path("runs/x"), "id1", 600))
    for step in range(10, 601, 10):
        console.goes_on(step - 10)
        console.log({"epoch": step // 100 + 1, "phase": "head", "train/loss": 1 / step,
                     "train/accuracy": 0.861, "lr": 1e-3, "images_per_second": 312.4}, step)
        if step % 300 == 0:
            console.log({"epoch": 3, "phase": "head", "val/loss": 0.5,
                         "val/accuracy": 0.95 - step / 1e4}, step)
        time.sleep(0.015 if how != "fast" else 0)
    console.finish({}, "done")
    console.say("the end")
"""


def in_a_pipe(how: str = "fast", **more: str) -> str:
    command = [sys.executable, "-c", PROGRAM, how]
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, check=True, timeout=30
    ).stdout


def test_a_log_has_plain_lines_of_the_first_and_last_step_and_every_evaluation() -> None:
    output = in_a_pipe()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", output)
    lines = output.splitlines()
    assert lines[0] == "a message [of] two \N{REPLACEMENT CHARACTER}[31m words"
    assert lines[1:] == [
        lines[1],
        "step 300/600  phase head  epoch 3  val loss 0.5000  val acc 0.920  best 0.920",
        lines[3],
        "step 600/600  phase head  epoch 3  val loss 0.5000  val acc 0.890  best 0.920",
        "the end",
    ]
    training = r"step 10/600  phase head  epoch 1  loss 0.1000  acc 0.861  lr 1.0e-03  312 img/s"
    assert re.fullmatch(rf"{training}  memory \d+ MB  eta \d:\d\d", lines[1])
    assert lines[3].startswith("step 600/600  phase head  epoch 7  loss 0.001667  acc 0.861")
    assert lines[3].endswith("eta 0:00")


def test_the_best_is_that_of_the_metric_that_was_chosen_and_of_earlier_starts() -> None:
    shown = io.StringIO()
    with open_console(shown) as console:
        chosen = {"metric": "val/loss", "mode": "auto"}
        best = {"val/loss": 0.25, "val/accuracy": 0.5, "step": 5}
        console.start(RunInfo({"best": chosen}, Path("runs/x"), "id1", 600, 10, True, best=best))
        for step, loss in ((20, 0.5), (30, 0.125)):
            console.log({"val/loss": loss, "val/accuracy": 0.5, "val/macro_f1": 0.5}, step)
        console.expect([PhasePlan("all", 300, 100, 100)])
        console.log({"val/loss": 0.5, "val/accuracy": 0.5}, 40)
    assert [line.rstrip() for line in shown.getvalue().splitlines()] == [
        "step 20/600  val loss 0.5000  val acc 0.500  best val loss 0.2500",
        "step 30/600  val loss 0.1250  val acc 0.500  best val loss 0.1250",
        "step 40/300  val loss 0.5000  val acc 0.500  best val loss 0.1250",
    ]


def test_of_two_as_good_the_best_is_that_of_the_run_with_the_lower_loss() -> None:
    """See `tl.selection.is_better`."""
    console = open_console(io.StringIO())
    console.start(RunInfo({}, Path("runs/x"), "id1", 600))
    for step, loss in ((10, 0.5), (20, 0.25), (30, 0.375)):
        console.log({"val/loss": loss, "val/accuracy": 0.5}, step)
    assert console.shown.best == {"val/loss": 0.25, "val/accuracy": 0.5, "step": 20}


def test_a_log_is_flushed_line_by_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "slow"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("a message")
    assert process.stdout.readline().startswith("step 10/600")
    assert process.poll() is None, "the lines came only with the end"
    process.stdout.close()
    process.kill()
    process.wait()


def test_forced_colour_moves_no_cursor_in_a_log() -> None:
    output = in_a_pipe(FORCE_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;?]*[A-LS-Zhl]", output)


def test_an_ascii_log_gets_what_it_can_take() -> None:
    assert "a message [of] two ?[31m words" in in_a_pipe(PYTHONIOENCODING="ascii")


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "slow"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("elapsed", "seconds"), [(0, 5), (299, 5), (600, 10), (3600, 60), (86400, 60)]
)
def test_the_longer_a_run_the_fewer_lines_of_it(elapsed: float, seconds: float) -> None:
    assert seconds_between_lines(elapsed) == pytest.approx(seconds, abs=0.02)


def test_durations_are_written_as_a_clock() -> None:
    assert [duration(s) for s in (0, 42.4, 723, 3723)] == ["0:00", "0:42", "12:03", "1:02:03"]
