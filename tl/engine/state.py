"""A run: what it was asked for, what it works with, and how far it has come."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import TypedDict  # of typing's pydantic knows nothing before Python 3.12

from tl.config import Config, NonNegativeInt, Phase
from tl.data.sampler import EvaluationSampler, TargetSampler, TrainSampler, train_sampler
from tl.data.split import AnyImages, Source
from tl.data.streams import BadImages, Sampler, open_stream
from tl.data.transforms import View
from tl.engine.agreement import Agreement
from tl.engine.runtime import Runtime
from tl.engine.stop_requests import StopRequests
from tl.engine.watchdog import Watchdog
from tl.engine.writer import Writer
from tl.errors import UserError
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing
from tl.objectives import objective_class
from tl.objectives.objective import Given, Stream
from tl.report.live import Live
from tl.tracking.console import ConsoleTracker
from tl.tracking.plan import PhasePlan
from tl.tracking.status import LiveStatus
from tl.tracking.trackers import Trackers


class EarlyStop(TypedDict):
    """A phase that ended before its time."""

    index: NonNegativeInt
    phase: str
    phase_steps: NonNegativeInt
    """steps that it trained"""
    step: NonNegativeInt
    """steps done in the run"""
    why: str


@dataclass
class Progress:
    """How far a run has come. It is what a checkpoint holds besides tensors, and all of it."""

    phase: NonNegativeInt = 0
    """Index of the phase that goes on."""
    phase_step: NonNegativeInt = 0
    """Steps done in that phase. The place in the data follows from it (`tl.data.sampler`)."""
    step: NonNegativeInt = 0
    """Steps done in the run."""
    evaluation_due: bool = False
    """The steps before an evaluation are done, and it is not."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the training metrics since the last line of them, over all processes."""
    images: NonNegativeInt = 0
    """Images trained on, in the run, up to that line."""
    training_seconds: float = 0.0
    """Without evaluations and checkpoints."""
    seconds_at_line: float = 0.0
    """`training_seconds` at the last line of training metrics."""
    wall_seconds: float = 0.0
    best: dict[str, int | float] = field(default_factory=dict)
    """Metrics of the best evaluation, and its step."""
    last: dict[str, int | float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    to_surpass: float | None = None
    """What early stopping compares with, in this phase; None before its first evaluation."""
    waits: NonNegativeInt = 0
    """Evaluations since that have not surpassed it."""
    early_stops: list[EarlyStop] = field(default_factory=list)
    bad_images: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    """sha256 of each frozen tensor when the phase began; a restart does not begin it again."""
    data: str = ""
    """Hash of the images' names and labels."""
    precision: str = ""
    left_out: list[list[int]] = field(default_factory=list)
    """First and last step of each stretch that was left out, its loss or gradient not finite."""
    changes: list[str] = field(default_factory=list)
    """What of the config was changed when the run went on."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(state: dict[str, Any], source: str) -> Progress:
        """The reverse of `to_dict`; other keys of a checkpoint's state may be there.

        Raises:
            UserError: a value is missing, or of a type that a run does not write.
        """
        kinds = get_type_hints(Progress, include_extras=True)
        if missing := [name for name in kinds if name not in state]:
            raise UserError(f"{source} is not complete: {', '.join(missing)} missing")
        if wrong := [name for name, kind in kinds.items() if not _is(state[name], kind)]:
            raise UserError(f"{source} holds what no run writes: {', '.join(wrong)}")
        return Progress(**{name: state[name] for name in kinds})


def _is(value: object, kind: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


class Stopwatch:
    """Counts the seconds of `progress.training_seconds` while it runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Add what has passed, and go on."""
        if self._since is not None:
            now = time.perf_counter()
            self._progress.training_seconds += now - self._since
            self._since = now

    def stop(self) -> None:
        self.lap()
        self._since = None


def streams_of(phase: Phase) -> tuple[Stream, ...]:
    """What batches of a phase are of; see `Objective.streams`."""
    return objective_class(phase.objective).streams


def leading_images(source: Source, phase: Phase) -> AnyImages:
    """The images that an epoch of a phase goes over once: the source's, or the target's alone."""
    if streams_of(phase)[0] == "target":
        assert source.target is not None
        return source.target.images
    return source.train


@dataclass
class Run:
    """Everything the loop works with."""

    config: Config
    phases: tuple[Phase, ...]
    run_dir: Path
    runtime: Runtime
    source: Source
    network: Network
    preprocessing: Preprocessing
    trackers: Trackers
    status: LiveStatus
    console: ConsoleTracker
    progress: Progress
    bad_images: BadImages
    workers: int
    stop_requests: StopRequests
    watchdog: Watchdog
    started: float
    """What `time.perf_counter` would have been at the start, had the run never been interrupted."""
    agreement: Agreement
    given: Given = field(default_factory=Given)
    """What objectives take besides the network."""
    seconds_to_first_step: float | None = None
    """From the command to the end of the first step that this process trained."""
    writer: Writer = field(default_factory=Writer)
    report: Live = field(default_factory=Live)
    """What `tl.engine.reporting` works with."""
    unsaved_best: dict[str, Tensor] | None = None
    """Tensors of the best model, on the CPU, until they are written."""

    def images_of(self, phase: Phase) -> AnyImages:
        """The images that an epoch of a phase goes over once."""
        return leading_images(self.source, phase)

    def steps_per_epoch(self, phase: Phase) -> int:
        return math.ceil(len(self.images_of(phase)) / phase.global_batch_size)

    def steps_of(self, phase: Phase) -> int:
        """Length of a phase in steps, if it does not end early."""
        return phase.steps or phase.epochs * self.steps_per_epoch(phase)

    def steps_in(self, index: int) -> int:
        """The same of phase ``index``; if it has ended early, the steps that it trained."""
        early = {stop["index"]: stop["phase_steps"] for stop in self.progress.early_stops}
        return early.get(index, self.steps_of(self.phases[index]))

    def first_epoch(self, index: int) -> int:
        """The number, from 0, of a phase's first epoch in the run; part of one counts as one."""
        return sum(
            math.ceil(self.steps_in(i) / self.steps_per_epoch(phase))
            for i, phase in enumerate(self.phases[:index])
        )

    @property
    def total_steps(self) -> int:
        return sum(self.steps_in(index) for index in range(len(self.phases)))

    @property
    def is_over(self) -> bool:
        return self.progress.phase == len(self.phases)

    @property
    def ends_early(self) -> bool:
        """Whether early stopping has ended the present phase."""
        return any(stop["index"] == self.progress.phase for stop in self.progress.early_stops)

    @property
    def plan(self) -> tuple[PhasePlan, ...]:
        """How long each phase takes."""
        target = self.source.target
        images = len(self.source.val) + (0 if target is None else len(target.test))
        plan = []
        for index, phase in enumerate(self.phases):
            every = phase.evaluate_every_steps or self.steps_per_epoch(phase)
            batches = images / phase.global_batch_size
            steps, per_epoch = self.steps_in(index), self.steps_per_epoch(phase)
            plan.append(PhasePlan(phase.name, steps, per_epoch, every, batches))
        return tuple(plan)

    def evaluates_after(self, phase_step: int) -> bool:
        """Whether there is an evaluation after so many steps of the present phase."""
        phase = self.phases[self.progress.phase]
        every = phase.evaluate_every_steps or self.steps_per_epoch(phase)
        return phase_step == self.steps_of(phase) or phase_step % every == 0

    def sampler(self, index: int) -> TrainSampler:
        """Which images this process trains on in what is left of phase ``index``."""
        first_step = self.progress.phase_step if index == self.progress.phase else 0
        here, seed = self.runtime, self.config.seed
        return train_sampler(
            self.phases[index], self.source, seed, self.first_epoch(index), first_step,
            rank=here.rank, world_size=here.world_size,
            of_target=streams_of(self.phases[index])[0] == "target",
        )  # fmt: skip

    def target_sampler(self, index: int) -> TargetSampler:
        """Which images of the target this process gets beside those of `sampler`."""
        assert self.source.target is not None
        images = len(self.source.target.images)
        taken = [self.steps_in(i) * p.global_batch_size for i, p in enumerate(self.phases[:index])]
        first_round = sum(math.ceil(n / images) for n in taken)
        return TargetSampler(self.sampler(index), images, first_round)

    def saves_at(self, step: int) -> bool:
        """Whether every how many steps says that there is a checkpoint after this one."""
        every = self.config.checkpoint.every_steps
        return every is not None and step % every == 0

    @property
    def saves_before_training(self) -> bool:
        """A run that is to go back when something is wrong needs a place to go back to."""
        return self.progress.step == 0 and self.config.nonfinite.startswith("rollback")

    def evaluation_sampler(self, phase: Phase, images: AnyImages) -> EvaluationSampler:
        """Each image once, in batches no smaller than this process trains with."""
        batch_size = max(32, math.ceil(phase.global_batch_size / self.runtime.world_size))
        return EvaluationSampler(
            len(images), batch_size, self.runtime.rank, self.runtime.world_size
        )

    def open_stream(
        self, split: AnyImages, view: View, sampler: Sampler, views: int | None = None
    ) -> DataLoader:
        """This process's batches of ``split``, one for each item of ``sampler``.

        With ``views`` there are that many of each image, which epochs take in turn.
        """
        return open_stream(
            split,
            view,
            sampler,
            seed=self.config.seed,
            size=self.preprocessing.crop_size,
            channels=self.preprocessing.channels,
            decode=self.config.data.decode,
            workers=self.workers,
            pin_memory=self.runtime.device.type == "cuda",
            views=views,
        )
