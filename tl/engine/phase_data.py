"""What a phase trains and validates on: images, or what the frozen prefix made of them before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tl.data.features.batches import Features
from tl.data.sampler import TargetSampler, TrainSampler
from tl.data.split import AnyImages
from tl.data.streams import Batch, Sampler
from tl.data.transforms import View, augmented_view, plain_view
from tl.engine.feature_plan import FeaturePlan, augment_of, plan_features, views_of
from tl.engine.features import load_or_compute
from tl.engine.state import Run, streams_of
from tl.objectives import objective_class


@dataclass(frozen=True)
class Part:
    """Images that batches are made of."""

    name: str
    """what its batches are called: a stream of an objective, or an evaluation's"""
    images: AnyImages
    view: View
    views: int | None = None
    """how many an image has, which rounds take in turn; None: another one in every round"""
    features: Features | None = None
    """if they are kept"""

    def batches(self, run: Run, sampler: Sampler) -> Iterable[Batch]:
        """This process's, one for each item of ``sampler``; may be gone through again and again."""
        if self.features is not None:
            return self.features.stream(sampler)
        return run.open_stream(self.images, self.view, sampler, self.views)


@dataclass(frozen=True)
class PhaseData:
    """Where a phase's batches come from."""

    run: Run
    index: int
    trained: tuple[Part, ...]
    """the streams of the phase's objective, in their order"""
    evaluated: tuple[Part, ...]
    predicted: Part | None = None
    """the target in the view of validation, if the objective ``needs`` predictions of it"""

    def training(self, sampler: TrainSampler) -> Iterator[Batch]:
        """This process's batches, one for each item of ``sampler``, with other domains in them."""
        first, *others = self.trained
        if not others:
            yield from first.batches(self.run, sampler)
            return
        target = self.run.target_sampler(self.index)
        streams = [first.batches(self.run, sampler)]
        streams += [part.batches(self.run, target) for part in others]
        for batch, *beside in zip(*streams, strict=True):
            for part, of_part in zip(others, beside, strict=True):
                batch[part.name] = of_part
            yield batch

    def validation(self) -> dict[str, Iterable[Batch]]:
        """This process's batches to evaluate on, by part; see `validate`."""
        phase, run = self.run.phases[self.index], self.run
        return {
            part.name: part.batches(run, run.evaluation_sampler(phase, part.images))
            for part in self.evaluated
        }

    def close(self) -> None:
        """Let go of cached features."""
        for part in (*self.trained, *self.evaluated, self.predicted):
            if part is not None and part.features is not None:
                part.features.close()


def phase_data(run: Run, index: int) -> PhaseData:
    """The data of what is left of phase ``index``, which `freeze` has set up.

    Called by all processes. What can be computed once is computed here, unless it was before.
    """
    phase, preprocessing, source = run.phases[index], run.preprocessing, run.source
    plan, streams = plan_of(run, index), streams_of(phase)
    plain = plain_view(preprocessing)
    evaluated = []
    if len(source.val):
        evaluated.append(_kept(run, Part("val", source.val, plain), "validation", plan.val))
    if source.target is not None:
        part = Part("target", source.target.test, plain)
        evaluated.append(_kept(run, part, "target test", plan.test))
    trained = []
    sampler = run.sampler(index)
    for stream in streams:
        augment = augment_of(phase, stream)
        view = augmented_view(preprocessing, augment, phase.crop_scale)
        images = source.train if stream == "source" else _target_images(run)
        # Without a frozen prefix nothing is kept, and every round has a view of its own.
        views = views_of(run.config.cache, augment) if run.network.frozen_prefix else None
        part, name = Part(stream, images, view, views), _NAMES[stream]
        of: TrainSampler | TargetSampler = sampler
        if stream != streams[0]:
            of = run.target_sampler(index)
        trained.append(_kept(run, part, name, plan.train, of))
    if any(part.features is None for part in trained):  # a step takes all at the same stage
        trained = [_images_again(part) for part in trained]
    predicted = None
    if "target_predictions" in objective_class(phase.objective).needs:
        predicted = Part("target", _target_images(run), plain)
        # Kept if they are what is trained on, and there already.
        predicted = _kept(run, predicted, "target", plan.train and phase.augment == "none")
    return PhaseData(run, index, tuple(trained), tuple(evaluated), predicted)


_NAMES = {"source": "training", "target": "target", "strong": "strongly augmented target"}


def _target_images(run: Run) -> AnyImages:
    assert run.source.target is not None
    return run.source.target.images


def _kept(
    run: Run,
    part: Part,
    name: str,
    wanted: bool,
    sampler: TrainSampler | TargetSampler | None = None,
) -> Part:
    """The part with its features, if they are to be kept and can be.

    Args:
        sampler: of images to train on, whose view is that of training.
    """
    if sampler is None:
        if not wanted:
            return part
        features = load_or_compute(run, part.images, name, False, part.view, 1, [0])
        return replace(part, features=features)
    if not wanted or not part.views or run.agreement.stop:
        return part
    needed = sorted({number % part.views for number in sampler.rounds()})
    features = load_or_compute(run, part.images, name, True, part.view, part.views, needed)
    return replace(part, features=features)


def _images_again(part: Part) -> Part:
    if part.features is not None:
        part.features.close()
    return replace(part, features=None)


def plan_of(run: Run, index: int) -> FeaturePlan:
    """Which features phase ``index`` keeps."""
    return plan_features(
        run.config.cache,
        run.phases[index],
        run.network,
        run.preprocessing,
        run.source,
        replace(run.sampler(index), first_step=0),
        half=run.runtime.precision != "no",
    )
