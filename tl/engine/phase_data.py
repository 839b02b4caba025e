"""What a phase trains and validates on: images, or what the frozen prefix made of them before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tl.data.features.batches import Features
from tl.data.sampler import TrainSampler
from tl.data.streams import Batch, Sampler
from tl.data.transforms import View, augmented_view, plain_view
from tl.engine.feature_plan import FeaturePlan, plan_features
from tl.engine.features import load_or_compute
from tl.engine.state import Run


@dataclass(frozen=True)
class PhaseData:
    """Where a phase's batches come from."""

    run: Run
    view: View
    """of a training image"""
    views: int | None
    """how many an image has, which rounds take in turn; None: another one in every round"""
    train: Features | None
    """of the training images, if they are kept"""
    val: Features | None
    """of the validation images, if they are kept"""

    def training(self, sampler: Sampler) -> Iterable[Batch]:
        """This process's batches to train on, one for each item of ``sampler``."""
        if self.train is not None:
            return self.train.stream(sampler)
        return self.run.open_stream(self.run.source.train, self.view, sampler, self.views)

    def validation(self, sampler: Sampler) -> Iterable[Batch]:
        """This process's batches to evaluate on; may be gone through again and again."""
        if self.val is not None:
            return self.val.stream(sampler)
        return self.run.open_stream(
            self.run.source.val, plain_view(self.run.preprocessing), sampler
        )

    def close(self) -> None:
        """Let go of cached features."""
        for features in (self.train, self.val):
            if features is not None:
                features.close()


def phase_data(run: Run, index: int, sampler: TrainSampler) -> PhaseData:
    """The data of phase ``index``, which `freeze` has set up; called by all processes.

    ``sampler`` is that of what is left of the phase.

    What can be computed once is computed here, unless it was before.
    """
    phase, preprocessing = run.phases[index], run.preprocessing
    view = augmented_view(preprocessing, phase.augment, phase.crop_scale)
    plan = plan_of(run, index)
    train = val = None
    if plan.val:
        val = load_or_compute(run, "validation", plain_view(preprocessing), 1, [0])
    if plan.train and plan.views and not run.agreement.stop:
        needed = sorted({number % plan.views for number in sampler.rounds()})
        train = load_or_compute(run, "training", view, plan.views, needed)
    return PhaseData(run, view, plan.views, train, val)


def plan_of(run: Run, index: int) -> FeaturePlan:
    """Which features phase ``index`` keeps."""
    phase = run.phases[index]
    return plan_features(
        run.config.cache,
        phase,
        run.network,
        run.preprocessing,
        (len(run.source.train), len(run.source.val)),
        rounds=len(replace(run.sampler(index), first_step=0).rounds()),
        half=run.runtime.precision != "no",
    )
