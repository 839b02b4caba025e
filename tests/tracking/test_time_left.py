"""The time left: its arithmetic, and that it does not jump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.tracking.plan import PhasePlan, place_after
from tl.tracking.time_left import Pace, TimeLeft

EXACT = 1e-9  # a few additions in float64


class Simulation:
    """A run in which steps and evaluations take what a test says, told to a `TimeLeft`."""

    def __init__(self, *phases: PhasePlan, start: int = 0, log_every: int = 10) -> None:
        self.phases, self.log_every = phases, log_every
        self.left, self.step, self.now = TimeLeft(phases, start), start, 100.0
        self.said: list[tuple[float, float | None]] = []
        """after each line: the time, and what was left"""

    def go(self, steps: int, seconds: float, evaluation: float = 0.0, writing: float = 0.0) -> None:
        """``seconds`` of a step, of an ``evaluation``, and of ``writing`` a checkpoint after it."""
        for _ in range(steps):
            here = place_after(self.phases, self.step)
            phase, done = self.phases[here.index], here.done + 1
            self.left.goes_on(self.step, self.now)
            self.now += seconds
            self.step += 1
            due = phase.evaluations(done) > phase.evaluations(done - 1)
            if due or self.step % self.log_every == 0:
                self.left.trained(self.step, self.now)
                self.said.append((self.now, self.left.seconds(self.now)))
            if due:
                self.now += evaluation
                self.left.evaluated(self.step, self.now)
                self.now += writing


def test_nothing_is_said_before_anything_is_known() -> None:
    left = TimeLeft([PhasePlan("all", 100, 10, 10)])
    assert left.seconds(0.0) is None
    left.goes_on(0, 5.0)
    assert left.seconds(5.0) is None


def test_steps_evaluations_and_checkpoints_are_counted() -> None:
    """After 250 of 600 steps: 350 of 0.1 s, and those evaluations that come, 2 s and 1 s each."""
    run = Simulation(PhasePlan("all", 600, 100, 100, 7.0))
    run.go(250, 0.1, evaluation=2.0, writing=1.0)
    assert run.left.seconds(run.now) == pytest.approx(350 * 0.1 + 4 * 3.0, abs=EXACT * 1e3)


def test_an_evaluation_that_nobody_has_timed_lasts_as_training_on_its_images() -> None:
    run = Simulation(PhasePlan("all", 600, 100, 100, 7.0))
    run.go(50, 0.1)
    assert run.left.seconds(run.now) == pytest.approx(550 * 0.1 + 6 * 0.7, abs=EXACT * 1e3)


def test_an_evaluation_that_goes_on_still_counts_and_its_time_goes_by() -> None:
    run = Simulation(PhasePlan("all", 600, 100, 100, 0.0))
    run.go(200, 0.1, evaluation=2.0, writing=1.0)  # two, the second without a step after it
    run.left.goes_on(200, run.now)
    run.go(99, 0.1)
    run.left.goes_on(299, run.now)
    run.left.trained(300, run.now + 0.1)
    at = run.now + 0.1
    assert run.left.seconds(at) == pytest.approx(300 * 0.1 + 4 * 3.0, abs=EXACT * 1e3)
    assert run.left.seconds(at + 1.5) == pytest.approx(300 * 0.1 + 4 * 3.0 - 1.5, abs=EXACT * 1e3)


def test_later_phases_are_counted_at_this_ones_pace_which_is_not_sure() -> None:
    run = Simulation(PhasePlan("head", 200, 100, 100), PhasePlan("all", 400, 100, 100))
    run.go(150, 0.01)
    assert run.left.seconds(run.now) == pytest.approx(450 * 0.01, abs=EXACT * 1e3)
    assert not run.left.is_sure
    run.go(50, 0.01)
    run.go(100, 1.0)  # the pace of the new phase is its own
    assert run.left.seconds(run.now) == pytest.approx(300.0, abs=EXACT * 1e3)
    assert run.left.is_sure


def test_the_first_lap_is_forgotten_when_there_is_a_second() -> None:
    pace = Pace()
    pace.lap(10, 60.0)  # kernels are chosen, workers started
    assert pace.seconds_per_step() == pytest.approx(6.0)
    pace.lap(10, 1.0)
    assert pace.seconds_per_step() == pytest.approx(0.1)


def test_a_run_that_goes_on_counts_what_is_left_of_it_alone() -> None:
    run = Simulation(PhasePlan("all", 600, 100, 100), start=450)
    run.go(50, 0.1)
    assert run.left.seconds(run.now) == pytest.approx(100 * 0.1, abs=EXACT * 1e3)


def test_a_run_that_goes_back_to_a_checkpoint_counts_its_steps_again() -> None:
    run = Simulation(PhasePlan("all", 600, 100, 600))
    run.go(300, 0.1)
    run.step = 200
    run.now += 30  # loading it is no step
    run.go(100, 0.1)
    assert run.left.seconds(run.now) == pytest.approx(300 * 0.1, abs=EXACT * 1e3)


def test_a_phase_that_ends_early_leaves_less() -> None:
    run = Simulation(PhasePlan("all", 600, 100, 100), PhasePlan("more", 100, 100, 100))
    run.go(300, 0.1)
    run.phases = (PhasePlan("all", 300, 100, 100), PhasePlan("more", 100, 100, 100))
    run.left.expect(run.phases)
    run.go(50, 0.1)
    assert run.left.seconds(run.now) == pytest.approx(50 * 0.1, abs=EXACT * 1e3)


def test_it_counts_down_but_not_below_the_steps_that_have_not_begun() -> None:
    run = Simulation(PhasePlan("all", 600, 100, 600))
    run.go(300, 0.1)
    assert run.left.seconds(run.now) == pytest.approx(30.0)
    for _ in range(5):  # without a line
        run.left.goes_on(run.step, run.now)
        run.step, run.now = run.step + 1, run.now + 0.1
    assert run.left.seconds(run.now) == pytest.approx(29.6, abs=EXACT * 1e3)
    assert run.left.seconds(run.now + 60) == pytest.approx(29.6, abs=EXACT * 1e3), "it waits"


def test_a_stall_of_a_minute_changes_the_estimate_of_an_hour_by_less_than_a_tenth() -> None:
    run = Simulation(PhasePlan("all", 36_000, 100, 36_000))
    run.go(3000, 0.1)
    before = run.left.seconds(run.now)
    run.go(1, 60.0)
    run.go(9, 0.1)
    after = run.left.seconds(run.now)
    assert before == pytest.approx(3300.0)
    assert after == pytest.approx(3300.0, rel=0.1)


def test_a_loader_that_delivers_in_bursts_is_believed() -> None:
    """15 steps of a millisecond and one of 1.6 s, in turn, each with a line of its own."""
    pace = Pace()
    for _ in range(200):
        for seconds in [0.001] * 15 + [1.6]:
            pace.lap(1, seconds)
    assert pace.seconds_per_step() == pytest.approx((15 * 0.001 + 1.6) / 16, rel=0.1)


@pytest.mark.parametrize(("factor", "minutes"), [(0.1, 8), (2.0, 8), (10.0, 1)])
def test_a_pace_that_has_changed_is_believed_in_minutes(factor: float, minutes: int) -> None:
    pace = Pace()
    for _ in range(1000):
        pace.lap(10, 1.0)
    for _ in range(round(60 * minutes / factor)):
        pace.lap(10, factor)
    assert pace.seconds_per_step() == pytest.approx(0.1 * factor, rel=0.1)


@given(
    step=st.floats(0.01, 10.0),
    noise=st.lists(st.floats(0.8, 1.25), min_size=60, max_size=60),
    evaluation=st.floats(0.0, 20.0),
)
def test_the_end_that_it_promises_stays_within_the_noise(
    step: float, noise: list[float], evaluation: float
) -> None:
    """Steps that vary by a quarter move the promised end by a quarter of what was left at most."""
    run = Simulation(PhasePlan("all", 600, 100, 100, evaluation / step))
    for factor in noise:
        run.go(10, step * factor, evaluation=evaluation)
    for now, left in run.said[5:]:
        assert left is not None
        truth = run.now - now
        # The evaluation after the last line has no step after it that could time it.
        assert left == pytest.approx(truth, rel=0.57, abs=step * 10 + EXACT)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 15)), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_place_of_a_step_is_found_by_counting(
    sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    phases = [PhasePlan("p", steps, per_epoch, 1) for steps, per_epoch in sizes]
    steps = [
        (index, done, done // per_epoch)
        for index, (steps, per_epoch) in enumerate(sizes)
        for done in range(steps)
    ]
    epochs = list(dict.fromkeys((index, epoch) for index, _, epoch in steps))
    step = data.draw(st.integers(0, len(steps) - 1))
    index, done, epoch = steps[step]
    place = place_after(phases, step)
    assert (place.index, place.done) == (index, done)
    assert place.epoch == epochs.index((index, epoch)) + 1


@pytest.mark.parametrize(("steps", "every"), [(10, 5), (10, 3), (10, 20), (1, 1)])
def test_evaluations_are_counted_as_the_loop_makes_them(steps: int, every: int) -> None:
    phase = PhasePlan("all", steps, 1, every)
    made = 0
    for done in range(1, steps + 1):
        made += done == steps or done % every == 0
        assert phase.evaluations(done) == made
