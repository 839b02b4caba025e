"""Sampling by class: its shares, its rounds, and the same on any number of processes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tl.config import Config, Phase
from tl.data.class_sampling import ClassSampling, check_sampling, weights_of
from tl.data.sampler import PADDING, Key, TrainSampler
from tl.data.split import Source, Split
from tl.errors import UserError

SAMPLINGS = ["balanced", "weighted(0.5)", "weighted(0.25)", "weighted(1)", "weighted(.9)"]


@st.composite
def samplers(draw: st.DrawFn, samplings: tuple[str, ...] = tuple(SAMPLINGS)) -> TrainSampler:
    """Of one to three epochs, for a process that is alone; every class has an image."""
    counts = draw(st.lists(st.integers(1, 25), min_size=2, max_size=6))
    seed, first_epoch = draw(st.integers(0, 2**64)), draw(st.integers(0, 5))
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(labels)
    batch = draw(st.integers(1, 30))
    steps = math.ceil(len(labels) / batch) * draw(st.integers(1, 3))
    sampling = draw(st.sampled_from(samplings))
    by_class = ClassSampling.of(sampling, labels, len(counts), seed, first_epoch)
    accumulation = draw(st.integers(1, 3))
    return TrainSampler(
        len(labels), batch, seed, first_epoch, 0, steps, 0, 1, accumulation, by_class
    )


def steps_of(sampler: TrainSampler, world: int = 1) -> list[list[Key]]:
    """The images of each step, those of all processes together."""
    ranks = [iter(replace(sampler, rank=rank, world_size=world)) for rank in range(world)]
    steps = []
    for step in range(sampler.first_step, sampler.last_step):
        parts = [next(keys) for _ in range(sampler.micro_batches_in(step)) for keys in ranks]
        steps.append([key for key in chain(*parts) if key[1] != PADDING])
    assert all(next(keys, None) is None for keys in ranks)
    return steps


def epochs_of(sampler: TrainSampler) -> list[list[Key]]:
    steps, each = steps_of(sampler), sampler.steps_per_epoch
    return [list(chain(*steps[i : i + each])) for i in range(0, len(steps), each)]


@settings(max_examples=40, deadline=None)
@given(samplers(), st.integers(2, 4))
def test_a_global_batch_is_the_same_on_any_number_of_processes(
    sampler: TrainSampler, world: int
) -> None:
    assert steps_of(sampler, world) == steps_of(sampler)


@settings(max_examples=40, deadline=None)
@given(samplers(), st.integers(1, 4), st.data())
def test_going_on_from_any_step_gives_the_tail(
    sampler: TrainSampler, world: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, sampler.last_step))
    assert steps_of(replace(sampler, first_step=first), world) == steps_of(sampler)[first:]


@settings(max_examples=50, deadline=None)
@given(samplers(("balanced", "weighted(1.0)")))
def test_balanced_draws_each_class_as_often_to_within_one_in_an_epoch_of_as_many_images(
    sampler: TrainSampler,
) -> None:
    assert sampler.by_class is not None
    for keys in epochs_of(sampler):
        assert len(keys) == sampler.num_images
        seen = Counter(sampler.by_class.labels[[i for _, i in keys]].tolist())
        counts = [seen[c] for c in range(len(sampler.by_class.weights))]
        assert max(counts) - min(counts) <= 1


@settings(max_examples=50, deadline=None)
@given(samplers())
def test_a_class_is_drawn_by_its_share_rounded_down_or_up(sampler: TrainSampler) -> None:
    by_class = sampler.by_class
    assert by_class is not None
    share = np.array(by_class.weights) / sum(by_class.weights)
    for epoch in range(3):
        away = by_class.draws(epoch) - sampler.num_images * share
        assert np.abs(away).max() < 1 + 1e-9
        assert by_class.draws(epoch).sum() == sampler.num_images


def test_shares_are_powers_of_the_numbers_of_images_as_in_kang_et_al() -> None:
    counts = np.array([1, 7, 100, 12345])
    for p in (0.1, 0.5, 0.8):
        found = np.array(weights_of(f"weighted({p})", counts), float)
        expected = counts ** (1 - p)
        # The weights are whole millionths of a millionth.
        assert found / found.sum() == pytest.approx(expected / expected.sum(), rel=1e-11)
    assert weights_of("balanced", counts) == weights_of("weighted(1)", counts) == [1, 1, 1, 1]
    assert weights_of("uniform", counts) is weights_of("weighted(0)", counts) is None


def test_what_a_class_does_not_get_in_one_epoch_it_gets_in_another() -> None:
    by_class = ClassSampling.of("balanced", np.repeat([0, 1, 2], [2, 3, 5]), 3, 0, 0)
    assert by_class is not None
    mean = by_class.draws_before(900) / 900
    # Each has three draws or four: of 900 fair ones the mean is within 0.05 of 10/3 (3 sigma).
    assert mean == pytest.approx([10 / 3] * 3, abs=0.05)


@settings(max_examples=50, deadline=None)
@given(samplers())
def test_no_image_comes_again_before_all_others_of_its_class_have(sampler: TrainSampler) -> None:
    """Of a class, epoch after epoch: a round has each image once, and only the last is cut off."""
    assert sampler.by_class is not None
    labels, members = sampler.by_class.labels, sampler.by_class.members
    rounds: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for keys in epochs_of(sampler):
        begun = {c: max((r for k, r in rounds if k == c), default=-1) for c in range(len(members))}
        for number, i in keys:
            assert number >= begun[int(labels[i])]  # none goes back to a round that is over
            rounds[int(labels[i]), number][i] += 1
    for (c, number), seen in rounds.items():
        assert set(seen.values()) == {1}
        if (c, number + 1) in rounds:
            assert set(seen) == set(members[c].tolist())


@settings(max_examples=40, deadline=None)
@given(samplers(), st.data())
def test_the_rounds_that_are_left_are_foretold(sampler: TrainSampler, data: st.DataObject) -> None:
    """Of whole epochs, as a phase cannot know where in an epoch it will be stopped."""
    epoch = data.draw(st.integers(0, sampler.last_step // sampler.steps_per_epoch))
    sampler = replace(sampler, first_step=epoch * sampler.steps_per_epoch)
    assert sampler.rounds() == {number for number, _ in chain(*steps_of(sampler))}


def test_classes_of_the_same_size_are_each_seen_once_an_epoch() -> None:
    labels = np.arange(12) % 3
    by_class = ClassSampling.of("balanced", labels, 3, seed=4, first_epoch=2)
    sampler = TrainSampler(12, 5, 4, 2, 0, 6, 0, 1, 1, by_class)
    for number, keys in enumerate(epochs_of(sampler)):
        assert sorted(keys) == [(2 + number, i) for i in range(12)]


def test_the_draws_of_an_epoch_stay_what_they_were() -> None:
    """A checkpoint is continued by a later version only if they are still the same."""
    by_class = ClassSampling.of("weighted(0.5)", np.repeat([0, 1], [7, 2]), 2, 0, 0)
    assert by_class is not None
    rounds, ids = next(by_class.epochs(1))
    assert list(zip(rounds.tolist(), ids.tolist(), strict=True)) == EXPECTED


EXPECTED = [(0, 5), (2, 7), (1, 8), (1, 6), (1, 4), (1, 1), (3, 8), (2, 8), (1, 0)]


def of_labels(labels: list[int], names: list[str], domains: tuple[str, ...] = ()) -> Source:
    split = Split(names, np.array(labels), Image.new)  # type: ignore[arg-type]
    return Source("three", ("a", "b", "c"), split, split, domains=domains)


def test_a_class_without_images_is_an_error_that_names_it() -> None:
    source = of_labels([0, 0, 2], ["1", "2", "3"])
    check_sampling("uniform", source)
    check_sampling("weighted(0)", source)
    for sampling in ("balanced", "weighted(0.5)"):
        with pytest.raises(UserError, match=r"no training images of b: leave out these classes"):
            check_sampling(sampling, source)


def test_so_is_a_domain_of_which_nothing_is_left() -> None:
    names = ["art/1", "art/2", "photo/1"]
    check_sampling("domains", of_labels([0, 0, 2], names, ("art", "photo")))
    with pytest.raises(UserError, match=r"images of clip: leave out these domains.*source_domains"):
        check_sampling("domains", of_labels([0, 0, 2], names, ("art", "clip", "photo")))
    for domains in ((), ("art",)):
        with pytest.raises(UserError, match="draws from several source domains, and there is one"):
            check_sampling("domains", of_labels([0, 0, 2], names, domains))


@pytest.mark.parametrize(
    "text", ["weighted(1.5)", "weighted(-1)", "weighted", "balance", "weighted(1e-1)", "weighted()"]
)
def test_other_samplings_are_mistakes(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be uniform, balanced, domains or weighted\(p\)"):
        Config(sampling=text)
    Phase(name="a", train="head", sampling="weighted(0.5)")
