"""The rows of a display at any width: whole parts, left out in the order that is documented."""

from __future__ import annotations

import io
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tl.tracking.plan import PhasePlan
from tl.tracking.progress_line import Part, fitting, width_of
from tl.tracking.progress_rows import Shown, progress_rows

PHASES = (PhasePlan("head", 300, 100, 100), PhasePlan("layer4", 300, 100, 100))
TRAINING = {"train/loss": 0.25, "train/accuracy": 0.861, "lr": 1e-3, "images_per_second": 312.4}
EVALUATION = {"val/loss": 0.5, "val/accuracy": 0.883}
BEST = {"val/accuracy": 0.92, "target/im": 1.3, "step": 300}
TARGET = {"target/im": 1.234, "target/snd": 3.0, "target/entropy": 0.5, "oracle/accuracy": 0.7}


def rows(shown: Shown, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=False)
    for row in progress_rows(shown, width):
        console.print(row, width=width, no_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return [row.rstrip() for row in console.file.getvalue().splitlines()]


def shown(**more: object) -> Shown:
    usual = {
        "phases": PHASES, "step": 350, "best": BEST, "training": TRAINING,
        "evaluation": EVALUATION, "memory": "GPU 3.2 GB", "doing": "", "seconds_left": 42.0,
    }  # fmt: skip
    return Shown(**{**usual, **more})  # type: ignore[arg-type]


def test_the_parts_of_the_first_row_leave_in_the_documented_order() -> None:
    parts = ["━─", "epoch 4/6", "phase 2/2 layer4", "evaluating", "step 350/600", "0:42 left"]
    left = parts
    for width in range(100, 19, -1):
        row = rows(shown(doing="evaluating"), width)[0]
        there = [part for part in parts if part in row]
        assert there == left[len(left) - len(there) :], f"at {width} columns: {row}"
        left = there
    assert left == ["0:42 left"]


def test_the_parts_of_the_second_row_leave_in_the_documented_order() -> None:
    parts = ["lr 1.0e-03", "GPU 3.2 GB", "312 img/s", "loss 0.2500", "acc 0.861"]
    left = parts
    for width in range(100, 19, -1):
        row = rows(shown(), width)[1]
        there = [part for part in parts if part in row]
        assert there == left[len(left) - len(there) :], f"at {width} columns: {row}"
        left = there
    assert left[-1] == "acc 0.861"


def test_the_parts_of_the_third_row_leave_in_the_documented_order() -> None:
    parts = [
        "at step 300", "val loss 0.5000", "oracle acc 0.700", "target im 1.234", "val acc 0.883",
        "best 0.920",
    ]  # fmt: skip
    left = parts
    for width in range(100, 9, -1):
        row = rows(shown(evaluation={**EVALUATION, **TARGET}), width)[2]
        there = [part for part in parts if part in row]
        assert there == left[len(left) - len(there) :], f"at {width} columns: {row}"
        left = there
    assert left == ["best 0.920"]


def test_adaptation_shows_the_target_and_the_best_by_what_it_was_chosen_by() -> None:
    third = rows(
        shown(evaluation={**EVALUATION, **TARGET}, chosen="target/im", best=BEST), width=110
    )[2]
    assert third == (
        "eval   val loss 0.5000  val acc 0.883  target im 1.234  oracle acc 0.700  "
        "best target im 1.300 at step 300"
    )


def test_before_the_first_line_there_is_what_is_known() -> None:
    first, *others = rows(Shown(PHASES[:1], step=150), 60)
    assert re.fullmatch(r"phase head  epoch 2/3  step 150/300  ━{6}─{7}  starting", first)
    assert len(first) == 60
    assert others == [
        "train",
        "eval   none yet",
    ]


def test_a_time_that_is_not_sure_is_said_to_be_about_that() -> None:
    assert rows(shown(is_sure=False), 80)[0].endswith(" ~0:42 left")


names = st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from("층계 e\u0301"))


@given(
    width=st.integers(20, 250),
    name=names,
    step=st.integers(0, 600),
    doing=st.sampled_from(["", "starting", "evaluating"]),
    seconds=st.none() | st.floats(0, 1e7),
    numbers=st.dictionaries(
        st.sampled_from([*TRAINING, *EVALUATION, *TARGET]), st.floats(), max_size=8
    ),
)
def test_no_row_is_wrapped_whatever_it_says(
    width: int, name: str, step: int, doing: str, seconds: float | None, numbers: dict[str, float]
) -> None:
    phases = (PhasePlan(name, 300, 100, 100), PhasePlan("all", 300, 100, 100))
    given = shown(
        phases=phases, step=step, doing=doing, seconds_left=seconds, training=numbers,
        evaluation=numbers,
    )  # fmt: skip
    made = rows(given, width)
    assert len(made) == 3
    assert max(map(cell_len, made)) <= width


@given(
    parts=st.lists(
        st.builds(Part, st.text("ab층", min_size=1, max_size=9), st.integers(0, 5)), min_size=1
    ),
    width=st.integers(0, 80),
)
def test_what_fits_is_as_much_as_fits_and_the_lowest_ranks(parts: list[Part], width: int) -> None:
    by_rank = sorted(range(len(parts)), key=lambda i: (parts[i].rank, i))
    for number in range(len(parts), 0, -1):
        expected = [parts[i] for i in sorted(by_rank[:number])]
        if width_of(expected) <= width:
            break
    assert fitting(parts, width) == expected


def test_forty_columns_have_step_time_left_accuracy_and_the_best() -> None:
    assert rows(shown(), 40) == [
        "step 350/600  0:42 left",
        "train  loss 0.2500  acc 0.861  312 img/s",
        "eval   val acc 0.883  best 0.920",
    ]
