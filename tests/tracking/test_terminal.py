"""What is on the screen of a terminal while a run goes on and after it, letter by letter."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from terminal import Terminal

from tl.tracking.footer import FEWEST_LINES, ROWS, SUSPENDED_SECONDS

# A run of two phases. It waits where a test has a look, until that makes the file `go`.
PROGRAM = """
import logging, os, sys, time
from pathlib import Path

logging.basicConfig(format="%(message)s")  # keeps the sys.stderr that it finds now

from tl.engine_free import end_at_once
from tl.tracking.console import open_console
from tl.tracking.plan import PhasePlan
from tl.tracking.tracker import RunInfo

how, go = sys.argv[1], Path(sys.argv[2])
phases = (PhasePlan("head", 300, 100, 100, 10), PhasePlan("layer4", 300, 100, 100, 10))

def outside():
    logging.warning("a line of logging")
    print("a line on standard error", file=sys.stderr)
    os.write(2, b"a line of a C library\\n")
    os.system("echo a line of another process; echo and its second")
    os.write(1, b"half a line")

with open_console() as console:
    console.say("a message [of] two words")
    console.start(RunInfo({}, Path("runs/x"), "id1", 600, phases=phases))
    for done in range(1, 601):
        console.goes_on(done - 1)
        phase = phases[done > 300].name
        if done % 10 == 0:
            console.log({"epoch": (done + 99) // 100, "phase": phase, "train/loss": 1 / done,
                         "train/accuracy": 0.861, "lr": 1e-3, "images_per_second": 312.4}, done)
        if done % 100 == 0:
            console.evaluates()
            if how == "evaluate" and done == 300:
                while not go.exists():
                    time.sleep(0.02)
            console.log({"epoch": done // 100, "phase": phase, "val/loss": 0.5,
                         "val/accuracy": 0.95 - abs(done - 300) / 1e4}, done)
        if done == 349:
            outside()
        if done == 350 and how not in ("fast", "evaluate"):
            console.goes_on(done)
            while not go.exists():
                time.sleep(0.02)
            if how == "raise":
                raise RuntimeError("out of luck")
            if how == "end":
                console_end()
    console.finish({}, "done")
    console.say("the end")
"""
# tl.engine imports torch, which takes seconds: of what ends a process there this is all.
PROGRAM = PROGRAM.replace("from tl.engine_free import end_at_once\n", "").replace(
    "console_end()",
    "from tl.tracking.footer import restore_terminal; restore_terminal(); "
    'os.write(2, b"error: rank 1 is gone\\n"); os._exit(1)',
)

OUTSIDE = [
    "a line of logging",
    "a line on standard error",
    "a line of a C library",
    "a line of another process",
    "and its second",
    "half a line",
]


def evaluation(done: int, best: int) -> str:
    phase = "head" if done <= 300 else "layer4"
    accuracy, highest = (0.95 - abs(step - 300) / 1e4 for step in (done, best))
    where = f"step {done}/600  phase {phase}  epoch {done // 100}"
    return f"{where}  val loss 0.5000  val acc {accuracy:.3f}  best {highest:.3f}"


BEFORE = ["a message [of] two words", *(evaluation(done, done) for done in (100, 200, 300))]
AFTER = [*(evaluation(done, 300) for done in (400, 500, 600)), "the end"]


def program(tmp_path: Path, how: str, columns: int = 80, lines: int = 24, **more: str) -> Terminal:
    command = [sys.executable, "-c", PROGRAM, how, str(tmp_path / "go")]
    return Terminal(command, columns, lines, **more)


def waits_at_350(rows: list[str]) -> bool:
    return any(re.search(r"step 350/600", row) for row in rows)


def written(terminal: Terminal) -> list[str]:
    """What has been written above the rows, or is left without them."""
    rows = terminal.everything()
    while rows and not rows[-1]:
        rows.pop()
    return rows


def in_order(terminal: Terminal) -> None:
    """The terminal is as it was before the program."""
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.margins is None
    assert terminal.screen.cursor.x == 0


@pytest.mark.parametrize("columns", [80, 200])
def test_all_of_a_run_is_in_three_rows_at_the_bottom(tmp_path: Path, columns: int) -> None:
    with program(tmp_path, "wait", columns) as terminal:
        terminal.run_until(waits_at_350)
        first, training, evaluated = terminal.rows()[-ROWS:]
        start, bar, left = re.split(r"  (━+─*)  ", first)
        assert start == "phase 2/2 layer4  epoch 4/6  step 350/600"
        assert re.fullmatch(r"\d:\d\d left", left)
        assert len(first) == columns, "the bar takes the room that there is"
        assert bar.count("━") == round(len(bar) * 350 / 600)
        numbers = "train  loss 0.002857  acc 0.861  lr 1.0e-03  312 img/s"
        assert re.fullmatch(rf"{numbers}  memory \d+ MB", training)
        assert evaluated == ("eval   val loss 0.5000  val acc 0.950  best 0.950 at step 300")
        assert not terminal.screen.cursor.hidden
        (tmp_path / "go").touch()
        assert terminal.run_to_the_end() == 0
        assert written(terminal) == BEFORE + OUTSIDE + AFTER, "the rows are gone, and nothing else"
        in_order(terminal)


def test_what_others_write_scrolls_above_the_rows_and_nothing_is_lost(tmp_path: Path) -> None:
    with program(tmp_path, "wait", lines=10) as terminal:
        terminal.run_until(waits_at_350)
        assert terminal.rows()[-ROWS - 1 :][0] == OUTSIDE[-1]
        assert [row.split()[0] for row in terminal.rows()[-ROWS:]] == ["phase", "train", "eval"]
        assert terminal.everything()[:-ROWS] == BEFORE + OUTSIDE
        (tmp_path / "go").touch()
        terminal.run_to_the_end()
        assert written(terminal) == BEFORE + OUTSIDE + AFTER
        in_order(terminal)


def test_an_evaluation_is_said_to_go_on_in_its_phase_and_epoch(tmp_path: Path) -> None:
    with program(tmp_path, "evaluate") as terminal:
        terminal.run_until(lambda rows: "evaluating" in rows[-ROWS] and "300/600" in rows[-ROWS])
        assert terminal.rows()[-ROWS].startswith("phase 1/2 head  epoch 3/6  step 300/600")


@pytest.mark.parametrize(
    ("how", "error"),
    [("raise", "RuntimeError: out of luck"), ("end", "error: rank 1 is gone")],
)
def test_an_error_is_whole_below_the_last_state(tmp_path: Path, how: str, error: str) -> None:
    with program(tmp_path, how, lines=16) as terminal:
        terminal.run_until(waits_at_350)
        (tmp_path / "go").touch()
        assert terminal.run_to_the_end() == 1
        rows = written(terminal)
        assert rows[: len(BEFORE + OUTSIDE)] == BEFORE + OUTSIDE
        first, training, evaluated, *rest = rows[len(BEFORE + OUTSIDE) :]
        assert first.startswith("phase 2/2 layer4  epoch 4/6  step 350/600")
        assert training.startswith("train  loss 0.002857")
        assert evaluated.endswith("best 0.950 at step 300")
        assert rest[-1] == error
        assert len(rest) == 1 or rest[0] == "Traceback (most recent call last):"
        in_order(terminal)


@pytest.mark.parametrize("size", [(60, 12), (120, 40)])
def test_the_rows_follow_the_size_of_the_window(tmp_path: Path, size: tuple[int, int]) -> None:
    columns, lines = size
    with program(tmp_path, "wait") as terminal:
        terminal.run_until(waits_at_350)
        terminal.resize(columns, lines)
        terminal.run_until(lambda rows: rows[-ROWS].startswith("phase 2/2") and rows[-1] != "")
        rows = terminal.rows()
        assert sum("step 350/600" in row for row in rows) == 1, "the old ones are gone"
        assert max(map(len, rows)) <= columns
        assert len(rows[-ROWS]) == columns or columns < 80, "there is no room for a bar"
        (tmp_path / "go").touch()
        assert terminal.run_to_the_end() == 0
        assert [row for row in written(terminal) if row][-1] == AFTER[-1]
        in_order(terminal)


def test_the_rows_come_back_after_another_program_had_the_terminal(tmp_path: Path) -> None:
    with program(tmp_path, "wait") as terminal:
        terminal.run_until(waits_at_350)
        os.kill(terminal.process.pid, signal.SIGSTOP)
        terminal.show(b"\x1b[r\x1b[H\x1b[2J$ fg\r\n")  # as an editor leaves it, and the shell
        time.sleep(SUSPENDED_SECONDS + 0.5)
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.run_until(lambda rows: rows[-ROWS].startswith("phase 2/2"))
        assert terminal.rows()[0] == "$ fg"
        (tmp_path / "go").touch()
        assert terminal.run_to_the_end() == 0
        assert written(terminal)[-len(AFTER) :] == AFTER
        in_order(terminal)


def test_a_window_too_small_for_the_rows_has_lines(tmp_path: Path) -> None:
    with program(tmp_path, "fast", columns=200, lines=FEWEST_LINES - 1) as terminal:
        assert terminal.run_to_the_end() == 0
        are_plain_lines(written(terminal))


@pytest.mark.parametrize(
    "told",
    [{"TERM": "dumb"}, {"CI": "true"}, {"TTY_INTERACTIVE": "0"}],
    ids=lambda told: next(iter(told)),
)
def test_where_nobody_looks_on_there_are_plain_lines(tmp_path: Path, told: dict[str, str]) -> None:
    with program(tmp_path, "fast", 200, **told) as terminal:
        assert terminal.run_to_the_end() == 0
        assert not re.search(rb"\x1b\[[0-9;?]*[A-LS-Zhlr]|\x1b[78D]", terminal.bytes)
        are_plain_lines(written(terminal))


def are_plain_lines(rows: list[str]) -> None:
    """The first and the last of training, and all evaluations, at most one line in five seconds."""
    training = [row for row in rows if "  loss " in row]
    outside = [*OUTSIDE[:-1], OUTSIDE[-1] + AFTER[0]]  # who leaves half a line gets the other half
    assert [row for row in rows if row not in training] == BEFORE + outside + AFTER[1:]
    assert training[0].startswith("step 10/600  phase head  epoch 1  loss 0.1000")
    assert training[-1].startswith("step 600/600  phase layer4  epoch 6  loss 0.001667")


def test_no_color_is_honoured(tmp_path: Path) -> None:
    colour = re.compile(rb"\x1b\[[\d;]*(?:3\d|4\d|9\d)[\d;]*m")
    for told, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with program(tmp_path, "fast", **told) as terminal:
            terminal.run_to_the_end()
            assert bool(colour.search(terminal.bytes)) == coloured
            assert written(terminal) == BEFORE + OUTSIDE + AFTER


def test_a_terminal_of_ascii_gets_a_bar_that_it_can_show(tmp_path: Path) -> None:
    with program(tmp_path, "wait", PYTHONIOENCODING="ascii") as terminal:
        terminal.run_until(waits_at_350)
        assert re.search(r"step 350/600  =+-+  \d:\d\d left$", terminal.rows()[-ROWS])
