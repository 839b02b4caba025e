"""The screen: live rows of progress on a terminal, plain lines in a log, and messages."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from tl.config import BestConfig
from tl.selection import is_better
from tl.tracking.footer import Footer
from tl.tracking.memory import in_words, memory_in_use
from tl.tracking.plan import PhasePlan
from tl.tracking.progress_line import (
    GAP,
    Part,
    best,
    duration,
    fitting,
    is_evaluation,
    speed,
    values,
    where,
)
from tl.tracking.progress_rows import EMPTY, EVALUATING, FULL, Shown, progress_rows
from tl.tracking.time_left import TimeLeft
from tl.tracking.tracker import Metrics, RunInfo

_USUAL = BestConfig(metric="val/accuracy")
_NO_PHASE = PhasePlan("run", 0, steps_per_epoch=1, evaluate_every=1)
"""of a run that has not been told, or of one that does not say"""


def seconds_between_lines(elapsed: float) -> float:
    """How long a log goes without a line of training at least: 5 s at first, a minute in the end.

    A run of a day has 1,500 such lines.
    """
    return min(60.0, max(5.0, elapsed / 60))


def open_console(file: TextIO | None = None) -> ConsoleTracker:
    """The screen of a process: standard output, or ``file``. Make one and share it."""
    # In a notebook rich would write HTML, of which the next line is not flushed and never ends.
    return ConsoleTracker(Console(file=file, highlight=False, force_jupyter=False))


class ConsoleTracker:
    """Shows progress and messages, and keeps them from overwriting each other.

    On a terminal three rows at the bottom are kept up to date (`tl.tracking.progress_rows`), and
    messages and evaluations scroll above them. Elsewhere (Slurm, a pipe, CI, a notebook, a dumb
    terminal) there are plain lines, flushed at once: the first of training, the last, every
    evaluation, and otherwise one in `seconds_between_lines` at most.

    As a context manager it leaves the terminal in order however the block ends: after an error with
    the last state on it.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._footer: Footer | None = None
        self._started = time.monotonic()
        self._last_line: float | None = None
        self._gpu = False
        self._chosen = _USUAL
        self.shown = Shown(phases=[_NO_PHASE])
        """how far the run has come"""
        self._left = TimeLeft([_NO_PHASE])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(keep=kind is not None)

    def say(self, text: str) -> None:
        """Show a message: one line, or several."""
        self.show(Text(self._printable(text)), wrap=False)

    def show(self, renderable: RenderableType, wrap: bool = True) -> None:
        """Show a table or any other rich renderable."""
        if self._footer is not None:
            self._footer.fresh_line()
        try:
            self.console.print(renderable, soft_wrap=not wrap)
        except (SystemExit, OSError):
            # The reader has gone, as in `... | head` (rich points the output at nowhere and asks to
            # end), or the terminal. A run does not depend on being watched.
            return

    # ---------------------------------------------------------------------------- of a run

    def start(self, run: RunInfo) -> None:
        """Begin to show the progress of a run."""
        chosen = BestConfig(**{**_USUAL.model_dump(), **run.config.get("best", {})})
        self._chosen, self._gpu = chosen, run.gpu
        self._started, self._last_line = time.monotonic(), None
        self.shown = Shown(
            phases=self._named(run.phases or [replace(_NO_PHASE, steps=run.total_steps)]),
            step=run.start_step,
            chosen=chosen.metric,
            best=dict(run.best),
        )
        self._left = TimeLeft(self.shown.phases, run.start_step)
        if _is_for_a_person(self.console):
            self._footer = Footer(self.console.file.fileno(), self.console.encoding, self._draw)
            self._footer.open()

    def goes_on(self, step: int) -> None:
        """The step after ``step`` begins. Called before each one: it waits for nothing."""
        self._left.goes_on(step, time.monotonic())
        self.shown.step, self.shown.doing = step, ""

    def evaluates(self) -> None:
        """An evaluation begins."""
        self.shown.doing = EVALUATING

    def log(self, metrics: Metrics, step: int) -> None:
        """Show one line of metrics."""
        now, evaluation = time.monotonic(), is_evaluation(metrics)
        shown = self.shown
        shown.step = step
        better = False
        if evaluation:
            self._left.evaluated(step, now)
            shown.evaluation = metrics
            better = self._note_best(metrics, step)
        else:
            self._left.trained(step, now)
            shown.training = metrics
        kind, size = memory_in_use(self._gpu)
        shown.memory = f"{kind} {in_words(size)}"
        due = self._last_line is None or (
            now - self._last_line >= seconds_between_lines(now - self._started)
        )
        if evaluation or (not self._is_live and (due or step >= self._total)):
            self._show_line(metrics, step, evaluation, better)
            # An evaluation's line does not take the place of the next one of training.
            self._last_line = self._last_line if evaluation else now

    def expect(self, phases: Sequence[PhasePlan]) -> None:
        """A phase has ended early, and the run has fewer steps than it was thought to have."""
        self.shown.phases = self._named(phases)
        self._left.expect(self.shown.phases)

    def finish(self, summary: dict[str, Any], state: str) -> None:
        """Take the live display away; what it said last stays, unless the run is done."""
        del summary
        self._close(keep=state != "done")

    # ------------------------------------------------------------------------ how it looks

    @property
    def _is_live(self) -> bool:
        """Not in a window that is too small, nor in the background."""
        return self._footer is not None and self._footer.is_shown

    @property
    def _total(self) -> int:
        return sum(phase.steps for phase in self.shown.phases)

    def _note_best(self, metrics: Metrics, step: int) -> bool:
        """Whether it is the best so far, by the rule of the run itself."""
        numbers = {key: value for key, value in metrics.items() if not isinstance(value, str)}
        if self._chosen.metric not in numbers:
            return False
        if not is_better(numbers, self.shown.best, self._chosen):
            return False
        self.shown.best = {**numbers, "step": step}
        return True

    def _show_line(self, metrics: Metrics, step: int, evaluation: bool, better: bool) -> None:
        shown = self.shown
        parts = [*where(metrics, step, self._total), *values(metrics, shown.chosen)]
        if evaluation and shown.best:
            value = shown.best[shown.chosen]
            parts.append(Part(best(shown.chosen, value), -1, "green" if better else ""))
        parts += speed(metrics)
        if not evaluation:
            parts.append(Part(shown.memory, 4))
            seconds = self._left.seconds(time.monotonic())
            if seconds is not None:
                parts.append(Part(f"eta {'' if self._left.is_sure else '~'}{duration(seconds)}"))
        if self._is_live:
            parts = fitting(parts, self.console.width)
        texts = [Text(self._printable(part.text), part.style) for part in parts]
        self.show(Text(GAP).join(texts), wrap=False)

    def _draw(self, columns: int) -> list[str]:
        """The rows as a terminal takes them. Called by the footer's thread."""
        shown = replace(
            self.shown,
            seconds_left=self._left.seconds(time.monotonic()),
            is_sure=self._left.is_sure,
        )
        with self.console.capture() as captured:
            rows = Text("\n").join(progress_rows(shown, columns))
            self.console.print(rows, width=columns, no_wrap=True)
        drawn = captured.get()
        if not self.console.encoding.lower().startswith("utf"):
            drawn = drawn.replace(FULL, "=").replace(EMPTY, "-")
        return drawn.splitlines()

    def _close(self, keep: bool) -> None:
        if self._footer is not None:
            footer, self._footer = self._footer, None
            footer.close(keep)

    def _named(self, phases: Sequence[PhasePlan]) -> list[PhasePlan]:
        return [replace(phase, name=self._printable(phase.name)) for phase in phases]

    def _printable(self, text: str) -> str:
        """``text`` without what could steer a terminal, in letters that the output can take."""
        safe = "".join(
            c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
        )
        encoding = self.console.encoding
        return safe.encode(encoding, "replace").decode(encoding)


def _is_for_a_person(console: Console) -> bool:
    """Whether somebody looks on who can be shown more than lines.

    FORCE_COLOR makes rich take any file for a terminal; moving a cursor needs a real one. Some CI
    has one, and nobody looks at it before it is a log. TTY_INTERACTIVE=0 asks for lines as well.
    """
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    can_move = console.is_interactive and not console.is_dumb_terminal
    return can_move and console.file.isatty() and not in_ci
