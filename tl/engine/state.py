"""A run: what it was asked for, what it works with, and how far it has come."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from tl.config import Config, Phase
from tl.data.sampler import EvaluationSampler
from tl.data.split import Source, Split
from tl.data.streams import BadImages, Sampler, open_stream
from tl.data.transforms import Transform
from tl.engine.interrupt import Interrupt
from tl.engine.runtime import Runtime
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing
from tl.tracking.console import ConsoleTracker
from tl.tracking.trackers import Trackers


@dataclass
class Progress:
    """How far a run has come. It is what a checkpoint holds besides tensors, and all of it."""

    phase: int = 0
    """Index of the phase that goes on."""
    phase_step: int = 0
    """Steps done in that phase. The place in the data follows from it (`tl.data.sampler`)."""
    step: int = 0
    """Steps done in the run."""
    images: int = 0
    """Images trained on, in the run."""
    training_seconds: float = 0.0
    wall_seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    """Metrics of the best evaluation, and its step."""
    last: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    bad_images: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    """sha256 of each frozen tensor when the phase began; a restart does not begin it again."""
    data: str = ""
    """Hash of the images' names and labels."""
    precision: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    console: ConsoleTracker
    progress: Progress
    bad_images: BadImages
    workers: int
    interrupt: Interrupt
    started: float
    """What `time.perf_counter` would have been at the start, had the run never been interrupted."""

    def steps_per_epoch(self, phase: Phase) -> int:
        return math.ceil(len(self.source.train) / phase.global_batch_size)

    def steps_of(self, phase: Phase) -> int:
        """Length of a phase in steps."""
        return phase.steps or phase.epochs * self.steps_per_epoch(phase)

    def first_epoch(self, index: int) -> int:
        """The number, from 0, of a phase's first epoch in the run; part of one counts as one."""
        return sum(
            math.ceil(self.steps_of(phase) / self.steps_per_epoch(phase))
            for phase in self.phases[:index]
        )

    @property
    def total_steps(self) -> int:
        return sum(self.steps_of(phase) for phase in self.phases)

    def evaluation_sampler(self, phase: Phase) -> EvaluationSampler:
        """Each validation image once, in batches no smaller than this process trains with."""
        batch_size = max(32, math.ceil(phase.global_batch_size / self.runtime.world_size))
        return EvaluationSampler(
            len(self.source.val), batch_size, self.runtime.rank, self.runtime.world_size
        )

    def open_stream(self, split: Split, view: Transform, sampler: Sampler) -> DataLoader:
        """This process's batches of ``split``, one for each item of ``sampler``."""
        return open_stream(
            split,
            view,
            sampler,
            seed=self.config.seed,
            size=self.preprocessing.crop_size,
            workers=self.workers,
            pin_memory=self.runtime.device.type == "cuda",
        )
