"""How long a run still takes: its steps at the present pace, and its evaluations.

    left = p · steps left + e · evaluations left

p is the seconds of a step in the present phase, e those of an evaluation with the checkpoint after
it. Checkpoints between evaluations are part of p.
"""

from __future__ import annotations

from collections.abc import Sequence

from tl.tracking.plan import PhasePlan, place_after


class Pace:
    """Seconds per step: a mean that forgets slowly, and of a stall believes a part.

    Steps are taken together for five seconds, as a loader delivers in bursts. Of such a stretch
    counts at most three times what its steps took before: one that waits for a disk for a minute
    does not triple the estimate of a day. Three in a row that take longer are a new pace, and what
    was before is forgotten. Otherwise what is two minutes ago counts half.

    The first lap is of no use once there is a second one: in its steps kernels are chosen and
    loaders started.
    """

    STRETCH_SECONDS = 5.0
    MOST = 3.0
    NEW_PACE = 3
    HALF_LIFE_SECONDS = 120.0

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._steps = self._seconds = 0.0
        self._open_steps = self._open_seconds = 0.0
        self._slow: list[tuple[float, float]] = []
        """steps and seconds of the last stretches, if they were"""

    def lap(self, steps: int, seconds: float) -> None:
        """Note that ``steps`` (at least one) took so many seconds."""
        if self._first is None:
            self._first = (steps, seconds)
            return
        self._open_steps += steps
        self._open_seconds += seconds
        if self._open_seconds >= self.STRETCH_SECONDS:
            self._close()

    def _close(self) -> None:
        """Take the open stretch into the mean."""
        steps, seconds, believed = self._open_steps, self._open_seconds, self._believed()
        self._open_steps = self._open_seconds = 0.0
        self._slow = [*self._slow, (steps, seconds)] if believed < seconds else []
        if len(self._slow) == self.NEW_PACE:
            self._steps, self._seconds = (sum(column) for column in zip(*self._slow, strict=True))
            self._slow = []
            return
        kept = 0.5 ** (seconds / self.HALF_LIFE_SECONDS)
        self._steps = kept * self._steps + steps
        self._seconds = kept * self._seconds + believed

    def seconds_per_step(self) -> float | None:
        """None before the first lap."""
        steps = self._steps + self._open_steps
        if steps:
            return (self._seconds + self._believed()) / steps
        return self._first and self._first[1] / self._first[0]

    def _believed(self) -> float:
        """Of the open stretch."""
        if not self._steps:
            return self._open_seconds
        usual = self._seconds / self._steps * self._open_steps
        return min(self._open_seconds, self.MOST * usual)


class TimeLeft:
    """Told of a run's steps, lines and evaluations, with the time in seconds, it says what is left.

    A phase that has not begun is taken to have the pace of the present one, as nothing else is
    known of it: `is_sure` is False then. So is an evaluation before the first one is over, which is
    taken to last as long as training on as many images.
    """

    def __init__(self, phases: Sequence[PhasePlan], step: int = 0) -> None:
        """``step``: steps that are done already."""
        self._phases = list(phases)
        self._step = step
        self._pace = Pace()
        self._pace_of = place_after(phases, step).index
        self._lap: tuple[int, float] | None = None
        """where and when it began; None: the run does not train just now"""
        self._line: tuple[int, float] | None = None
        self._evaluated: int | None = None
        """after which step the last evaluation was"""
        self._pauses: list[float] = []
        self._end: float | None = None

    def expect(self, phases: Sequence[PhasePlan]) -> None:
        """One of the phases has turned out to be shorter."""
        self._phases = list(phases)

    def goes_on(self, step: int, now: float) -> None:
        """The step after ``step`` begins."""
        if step < self._step:  # gone back to a checkpoint
            self._lap = None
        self._step = step
        if (phase := place_after(self._phases, step).index) != self._pace_of:
            # A step of the head alone can be a hundred times faster than one of everything.
            self._pace, self._pace_of, self._lap = Pace(), phase, None
        if self._lap is None:
            if self._line is not None and self._line[0] == step == self._evaluated:
                self._pauses = [*self._pauses[-1:], now - self._line[1]]
            self._lap = (step, now)
            self._estimate(now)

    def trained(self, step: int, now: float) -> None:
        """There is a line of training metrics: so the device has done all steps until ``step``."""
        if self._lap is not None and step > self._lap[0]:
            self._pace.lap(step - self._lap[0], now - self._lap[1])
            self._lap = (step, now)
        self._step, self._line = step, (step, now)
        self._estimate(now)

    def evaluated(self, step: int, now: float) -> None:
        """An evaluation is over; a checkpoint may follow."""
        self._step, self._evaluated, self._lap = step, step, None
        self._estimate(now)

    def seconds(self, now: float) -> float | None:
        """Seconds left; None before anything is known. Between two lines it goes as a clock does.

        It does not fall below what the steps take that have not begun.
        """
        pace = self._pace.seconds_per_step()
        if pace is None or self._end is None:
            return None
        return max(self._end - now, pace * self._steps_left(), 0.0)

    @property
    def is_sure(self) -> bool:
        """False while a later phase has not begun."""
        return place_after(self._phases, self._step).index == len(self._phases) - 1

    def _estimate(self, now: float) -> None:
        pace = self._pace.seconds_per_step()
        if pace is None:
            return
        left = pace * self._steps_left()
        here = place_after(self._phases, self._step)
        done = here.done
        for phase in self._phases[here.index :]:
            due = phase.evaluations(phase.steps) - phase.evaluations(done)
            left += due * self._pause(phase, pace)
            done = 0
        if self._step and self._evaluated != self._step:
            last = place_after(self._phases, self._step - 1)
            phase = self._phases[last.index]
            if phase.evaluations(last.done + 1) > phase.evaluations(last.done):  # it is going on
                left += self._pause(phase, pace)
        self._end = now + left

    def _pause(self, phase: PhasePlan, pace: float) -> float:
        if self._pauses:
            return sum(self._pauses) / len(self._pauses)
        return pace * phase.evaluation_images

    def _steps_left(self) -> int:
        return max(0, sum(phase.steps for phase in self._phases) - self._step)
