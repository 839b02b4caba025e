"""When a job queues again: by what its run wrote, what Slurm said, and how far the run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tl.slurm.requeue import Verdict, decide, newest_step


def verdict(status: dict[str, Any] | None, **keys: Any) -> Verdict:
    usual = {
        "code": 1,  # a launcher of several processes makes this of any other
        "began_at": 10,
        "step": 20,
        "asked": True,
        "ended": False,
        "requeues": 0,
        "max_requeues": 3,
    }
    return decide(status, **{**usual, **keys})


def stopped(message: str = "SIGTERM: stopped after step 20") -> dict[str, Any]:
    return {"state": "preempted", "exit_code": 75, "step": 20, "message": message}


def test_a_run_that_was_stopped_and_had_got_on_is_requeued() -> None:
    found = verdict(stopped())
    assert found.code == 75
    assert found.message == "stopped at step 20 with a checkpoint: requeued, 1 of 3 times"
    assert verdict(stopped(), asked=False).code == 75  # preempted with grace: only the step hears


def test_a_run_that_did_not_get_on_is_not_requeued() -> None:
    found = verdict(stopped(), began_at=20)
    assert found.code == 1
    assert "not requeued" in found.message
    assert "checkpoint.every_steps" in found.message


def test_a_run_is_requeued_so_many_times() -> None:
    assert [verdict(stopped(), requeues=n).code for n in range(5)] == [75, 75, 75, 1, 1]


def test_whom_slurm_has_ended_is_not_requeued_by_us() -> None:
    assert verdict(stopped(), ended=True).code == 1
    assert verdict(stopped(), ended=True, code=0).code == 1


def test_a_stop_file_of_the_user_is_obeyed() -> None:
    said = "runs/x/stop is there: stopped after step 20"
    assert verdict(stopped(said), asked=False).code == 0
    assert verdict(stopped(said), asked=True).code == 75  # made by the script


def test_a_run_that_is_done_is_done_whatever_was_said() -> None:
    done = {"state": "done", "exit_code": 0, "step": 30, "message": ""}
    for asked in (False, True):
        for ended in (False, True):
            assert verdict(done, asked=asked, ended=ended, code=143).code == 0


def test_a_failure_keeps_its_own_code_and_message() -> None:
    failed = {"state": "failed", "exit_code": 2, "step": 3, "message": "no such image"}
    assert verdict(failed) == Verdict(2, "the run has failed: no such image")
    assert verdict(None, code=137) == Verdict(137, "the run has failed: srun ended with 137")
    assert verdict(None, code=0).code == 1
    # Killed: it could not say so.
    running = {"state": "running", "exit_code": None, "step": 3, "message": ""}
    assert verdict(running, code=1) == Verdict(1, "the run has failed: srun ended with 1")


@given(
    state=st.sampled_from(["running", "done", "failed", "preempted", None]),
    step=st.integers(-1, 9),
    began_at=st.integers(-1, 9),
    requeues=st.integers(0, 5),
    asked=st.booleans(),
    ended=st.booleans(),
    code=st.integers(0, 255),
)
def test_nothing_goes_round_for_ever(
    state: str | None, step: int, began_at: int, requeues: int, asked: bool, ended: bool, code: int
) -> None:
    own = {"running": None, "done": 0, "failed": 1, "preempted": 75}
    status = None if state is None else {"state": state, "message": "", "exit_code": own[state]}
    found = verdict(
        status, step=step, began_at=began_at, requeues=requeues, asked=asked, ended=ended, code=code
    )
    if found.code == 75:
        assert state == "preempted"
        assert step > began_at
        assert requeues < 3
        assert not ended


def test_the_newest_checkpoint_is_found_by_its_number(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == -1
    for name in ("step-9", "step-10", "step-x", ".step-11.tmp", "step-12-old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 10
