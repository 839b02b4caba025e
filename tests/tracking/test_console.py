"""What people see: on a terminal of 80 or 200 columns, in a log, in a pipe that closes."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from tl.tracking.console import open_console
from tl.tracking.progress_line import TimeLeft, duration
from tl.tracking.tracker import RunInfo

ROOT = Path(__file__).parents[2]
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
        console.log({"epoch": step // 100 + 1, "phase": "head", "train/loss": 1 / step,
                     "train/accuracy": 0.861, "lr": 1e-3, "images_per_second": 312.4}, step)
        if step % 300 == 0:
            console.log({"epoch": 3, "phase": "head", "val/loss": 0.5,
                         "val/accuracy": 0.95 - step / 1e4}, step)
        time.sleep(0.015 if how != "fast" else 0)
        if step == 300 and how == "raise":
            raise RuntimeError("out of luck")
        if step == 300 and how == "interrupt":
            raise KeyboardInterrupt
    console.finish({}, "done")
    console.say("the end")
"""


def environment(**more: str) -> dict[str, str]:
    environ = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environ.pop("COLUMNS", None)
    return {**environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **more}


def in_a_pipe(how: str = "fast", **more: str) -> str:
    command = [sys.executable, "-c", PROGRAM, how]
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, check=True, timeout=30
    ).stdout


def on_a_terminal(columns: int, how: str = "slow", **more: str) -> str:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how],
        env=environment(**more),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last holder of the other end has gone
            break
        if not part:
            break
        seen += part
    os.close(ours)
    process.wait(timeout=30)
    return seen.decode()


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_log_has_plain_lines_of_the_first_and_last_step_and_every_evaluation() -> None:
    output = in_a_pipe()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", output)
    lines = output.splitlines()
    assert lines[0] == "a message [of] two \N{REPLACEMENT CHARACTER}[31m words"
    assert lines[1:] == [
        "step 10/600  phase head  epoch 1  loss 0.1000  acc 0.861  lr 1.0e-03  312 img/s",
        "step 300/600  phase head  epoch 3  val loss 0.5000  val acc 0.920  best 0.920",
        lines[3],
        "step 600/600  phase head  epoch 3  val loss 0.5000  val acc 0.890  best 0.920",
        "the end",
    ]
    assert lines[3].startswith("step 600/600  phase head  epoch 7  loss 0.001667  acc 0.861")
    assert lines[3].endswith("312 img/s  eta 0:00")


def test_the_best_is_that_of_the_metric_that_was_chosen_and_of_earlier_starts() -> None:
    shown = io.StringIO()
    with open_console(shown) as console:
        chosen = {"metric": "val/loss", "mode": "auto"}
        console.start(RunInfo({"best": chosen}, Path("runs/x"), "id1", 600, 10, True, best=0.25))
        for step, loss in ((20, 0.5), (30, 0.125)):
            console.log({"val/loss": loss, "val/accuracy": 0.5, "val/macro_f1": 0.5}, step)
        console.expect(300)
        console.log({"val/loss": 0.5, "val/accuracy": 0.5}, 40)
    assert [line.rstrip() for line in shown.getvalue().splitlines()] == [
        "step 20/600  val loss 0.5000  val acc 0.500  best val loss 0.2500",
        "step 30/600  val loss 0.1250  val acc 0.500  best val loss 0.1250",
        "step 40/300  val loss 0.5000  val acc 0.500  best val loss 0.1250",
    ]


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


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_shows_progress_in_its_width(columns: int) -> None:
    text = without_codes(on_a_terminal(columns))
    rows = [row for row in re.split(r"[\r\n]+", text) if row]
    assert max(map(len, rows)) <= columns
    progress = [row for row in rows if row.startswith("step ") and "left" in row]
    assert any(re.search(r"step \d+/600 .*312 img/s +\d:\d\d left", row) for row in progress)
    assert any("━" in row for row in progress)
    assert any("loss" in row and "best 0.920" in row and "lr" in row for row in rows)
    assert any("step 300/600" in row and "val acc 0.920" in row for row in rows)
    assert rows[-1].endswith("the end")


def test_no_color_is_honoured() -> None:
    colour = re.compile(r"\x1b\[[\d;]*(?:3\d|4\d|9\d)[\d;]*m")
    assert colour.search(on_a_terminal(80))
    assert not colour.search(on_a_terminal(80, NO_COLOR="1"))


@pytest.mark.parametrize("how", ["raise", "interrupt"])
def test_nothing_is_left_broken_on_the_screen_after_an_error(how: str) -> None:
    output = on_a_terminal(80, how)
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0, "the cursor stays hidden"


def test_a_dumb_terminal_gets_plain_lines() -> None:
    assert "\x1b" not in on_a_terminal(80, "fast", TERM="dumb")


def test_the_time_left_follows_the_recent_speed_of_the_phase() -> None:
    left = TimeLeft(total=100)
    assert left.seconds() is None
    for step in range(1, 51):
        left.update(step, now=0.1 * step, phase="head")
    assert left.seconds() == pytest.approx(5.0)
    left.update(51, now=10.0, phase="full")
    assert left.seconds() is None
    left.update(52, now=12.0, phase="full")
    assert left.seconds() == pytest.approx(96.0)


def test_durations_are_written_as_a_clock() -> None:
    assert [duration(s) for s in (0, 42.4, 723, 3723)] == ["0:00", "0:42", "12:03", "1:02:03"]
