"""The screen: a live line of progress on a terminal, plain lines in a log, and messages."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tl.config import BestConfig
from tl.selection import sign_of
from tl.tracking.progress_line import TimeLeft, best, duration, is_evaluation, speed, values, where
from tl.tracking.tracker import Metrics, RunInfo

SECONDS_BETWEEN_LINES = 5.0
_USUAL = BestConfig(metric="val/accuracy")


def open_console(file: TextIO | None = None) -> ConsoleTracker:
    """The screen of a process: standard output, or ``file``. Make one and share it."""
    return ConsoleTracker(Console(file=file, highlight=False))


class ConsoleTracker:
    """Shows progress and messages, and keeps them from overwriting each other.

    On a terminal two lines at the bottom are kept up to date, and messages and evaluations scroll
    above them. In a log (Slurm, a pipe) there are plain lines, flushed at once: the first step,
    the last, every evaluation, and otherwise one in five seconds at most.

    As a context manager it leaves the terminal in order however the block ends.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        # FORCE_COLOR makes rich take any file for a terminal; moving a cursor needs a real one.
        self._live_wanted = (
            console.is_terminal and console.file.isatty() and not console.is_dumb_terminal
        )
        self._live: Live | None = None
        self._total = self._step = 0
        self._latest: Metrics = {}
        self._best: float | int | None = None
        self._chosen = _USUAL
        self._left = TimeLeft(0)
        self._seconds_left: float | None = None
        self._last_line: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def say(self, text: str) -> None:
        """Show a message: one line, or several."""
        self.show(Text(self._printable(text)), wrap=False)

    def show(self, renderable: RenderableType, wrap: bool = True) -> None:
        """Show a table or any other rich renderable."""
        try:
            self.console.print(renderable, soft_wrap=not wrap)
        except SystemExit:
            # The reader has gone, as in `... | head`: rich points the output at nowhere and asks
            # to end. A run does not depend on being watched.
            return

    def start(self, run: RunInfo) -> None:
        """Begin to show the progress of a run."""
        self._total, self._step = run.total_steps, run.start_step
        self._left = TimeLeft(run.total_steps)
        self._best = run.best
        self._chosen = BestConfig(**{**_USUAL.model_dump(), **run.config.get("best", {})})
        if self._live_wanted:
            self._live = Live(
                console=self.console,
                get_renderable=self._display,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()

    def log(self, metrics: Metrics, step: int) -> None:
        """Show one line of metrics."""
        now = time.monotonic()
        self._step = step
        self._latest = {**self._latest, **metrics}
        self._left.update(step, now, metrics.get("phase"))
        self._seconds_left = self._left.seconds()
        evaluation = is_evaluation(metrics)
        value = metrics.get(self._chosen.metric)
        if isinstance(value, int | float):
            sign = sign_of(self._chosen)
            if self._best is None or sign * (value - self._best) > 0:
                self._best = value
        due = self._last_line is None or now - self._last_line >= SECONDS_BETWEEN_LINES
        if evaluation or (self._live is None and (due or step >= self._total)):
            self.say(self._line(metrics, step, evaluation))
            # An evaluation's line does not take the place of the next one of training.
            self._last_line = self._last_line if evaluation else now

    def expect(self, total_steps: int) -> None:
        """A phase has ended early, and the run has fewer steps than it was thought to have."""
        self._total = self._left.total = total_steps

    def finish(self, summary: dict[str, Any], state: str) -> None:
        """Take the live display away. Messages can still be shown."""
        del summary, state
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _line(self, metrics: Metrics, step: int, evaluation: bool) -> str:
        chosen = self._chosen.metric
        parts = [*where(metrics, step, self._total), *values(metrics, chosen)]
        if evaluation and self._best is not None:
            parts.append(best(chosen, self._best))
        parts += speed(metrics)
        if not evaluation and self._seconds_left is not None:
            parts.append(f"eta {duration(self._seconds_left)}")
        return "  ".join(parts)

    def _display(self) -> RenderableType:
        """The two lines at the bottom of a terminal. Called by a thread of rich's."""
        latest, left = self._latest, self._seconds_left
        # The bar takes what room the texts leave; they are never cut at 80 columns.
        top = Table.grid(expand=True, padding=(0, 1))
        top.add_column(no_wrap=True)
        top.add_column(ratio=1)
        top.add_column(no_wrap=True, justify="right")
        right = [*speed(latest), f"{duration(left)} left" if left is not None else "starting"]
        top.add_row(
            Text("  ".join(where(latest, self._step, self._total))),
            ProgressBar(total=max(self._total, 1), completed=self._step),
            Text("  ".join(right)),
        )
        numbers = values(latest, self._chosen.metric)
        if self._best is not None:
            numbers.append(best(self._chosen.metric, self._best))
        return Group(top, Text("  ".join(numbers), no_wrap=True, overflow="ellipsis"))

    def _printable(self, text: str) -> str:
        """``text`` without what could steer a terminal, in letters that the output can take."""
        safe = "".join(
            c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
        )
        encoding = self.console.encoding
        return safe.encode(encoding, "replace").decode(encoding)
