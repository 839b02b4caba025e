"""The target's images beside the source's: as many in a step, each once a round, from any step."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tl.config import Phase
from tl.data.sampler import PADDING, Key, TargetSampler, TrainSampler, epoch_order, train_sampler
from tl.data.split import Source, Split

worlds = st.integers(2, 5)


@st.composite
def samplers(draw: st.DrawFn) -> TargetSampler:
    """Beside one to four epochs of a source that is larger or smaller, for one process."""
    source, target = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    batch, seed = draw(st.integers(1, 35)), draw(st.integers(0, 2**64))
    # Whole epochs, or steps that end in the middle of one.
    steps = draw(st.integers(1, 4 * math.ceil(source / batch)))
    accumulation, first_epoch = draw(st.integers(1, 4)), draw(st.integers(0, 9))
    along = TrainSampler(source, batch, seed, first_epoch, 0, steps, 0, 1, accumulation)
    return TargetSampler(along, target, draw(st.integers(0, 9)))


def of_rank(sampler: TargetSampler, rank: int, world: int) -> TargetSampler:
    return replace(sampler, along=replace(sampler.along, rank=rank, world_size=world))


def from_step(sampler: TargetSampler, step: int) -> TargetSampler:
    return replace(sampler, along=replace(sampler.along, first_step=step))


def steps_of(sampler: TargetSampler | TrainSampler, world: int = 1) -> list[list[list[Key]]]:
    """For each step its micro-batches, those of all processes together, without padding."""
    along = sampler.along if isinstance(sampler, TargetSampler) else sampler
    ranks = [
        iter(of_rank(sampler, rank, world))
        if isinstance(sampler, TargetSampler)
        else iter(replace(sampler, rank=rank, world_size=world))
        for rank in range(world)
    ]
    steps = [
        [
            [key for keys in ranks for key in next(keys) if key[1] != PADDING]
            for _ in range(along.micro_batches_in(step))
        ]
        for step in range(along.first_step, along.last_step)
    ]
    assert all(next(keys, None) is None for keys in ranks)
    return steps


def keys_of(sampler: TargetSampler) -> list[Key]:
    return list(chain(*chain(*steps_of(sampler))))


@settings(max_examples=100, deadline=None)
@given(samplers())
def test_each_micro_batch_has_as_many_images_of_the_target_as_of_the_source(
    sampler: TargetSampler,
) -> None:
    sizes = [
        [[len(keys) for keys in step] for step in steps_of(each)]
        for each in (sampler, sampler.along)
    ]
    assert sizes[0] == sizes[1]
    assert len(sampler) == len(sampler.along)


@settings(max_examples=100, deadline=None)
@given(samplers(), worlds)
def test_each_process_has_as_many_of_both(sampler: TargetSampler, world: int) -> None:
    """So a process has padding of the one where it has padding of the other."""
    for rank in range(world):
        mine = of_rank(sampler, rank, world)
        for target, source in zip(mine, mine.along, strict=True):
            assert len(target) == len(source)
            assert [i == PADDING for _, i in target] == [i == PADDING for _, i in source]


@settings(max_examples=100, deadline=None)
@given(samplers())
def test_a_round_has_each_image_once_over_the_ends_of_epochs(sampler: TargetSampler) -> None:
    keys = keys_of(sampler)
    rounds: dict[int, Counter[int]] = defaultdict(Counter)
    for number, i in keys:
        rounds[number][i] += 1
    assert [number for number, _ in keys] == sorted(number for number, _ in keys)
    first, whole = sampler.first_round, len(keys) // sampler.num_images
    assert set(rounds) == set(range(first, first + math.ceil(len(keys) / sampler.num_images)))
    for number, seen in rounds.items():
        assert set(seen.values()) == {1}
        if number < first + whole:
            assert set(seen) == set(range(sampler.num_images))


def test_every_round_has_an_order_of_its_own_that_is_not_the_sources() -> None:
    along = TrainSampler(40, 7, 3, 0, 0, 24, 0, 1)  # four epochs
    keys = keys_of(TargetSampler(along, 40, 0))
    orders = [[i for number, i in keys if number == which] for which in range(4)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    orders += [epoch_order(40, 3, epoch).tolist() for epoch in range(4)]
    orders += [[i for _, i in keys_of(TargetSampler(replace(along, seed=4), 40, 0))][:40]]
    assert len({tuple(order) for order in orders}) == 9


def test_the_order_of_a_round_is_the_same_in_whichever_phase_it_is() -> None:
    along = TrainSampler(6, 3, 5, 0, 0, 8, 0, 1)
    early, late = (keys_of(TargetSampler(along, 6, first)) for first in (0, 2))
    assert early[12:] == late[:12]


def test_the_order_of_a_round_stays_what_it_was() -> None:
    """A checkpoint is continued by a later version only if this order is still the same."""
    along = TrainSampler(9, 5, 0, 0, 0, 4, 0, 1)
    assert keys_of(TargetSampler(along, 7, 2)) == EXPECTED


EXPECTED = [
    (2, 2),
    (2, 1),
    (2, 3),
    (2, 4),
    (2, 6),
    (2, 5),
    (2, 0),
    (3, 2),
    (3, 0),
    (3, 3),
    (3, 1),
    (3, 5),
    (3, 4),
    (3, 6),
    (4, 4),
    (4, 2),
    (4, 6),
    (4, 1),
]


@settings(max_examples=100, deadline=None)
@given(samplers(), worlds)
def test_a_micro_batch_is_the_same_on_any_number_of_processes(
    sampler: TargetSampler, world: int
) -> None:
    assert steps_of(sampler, world) == steps_of(sampler)


@settings(max_examples=100, deadline=None)
@given(samplers(), st.integers(1, 5), st.data())
def test_going_on_from_any_step_gives_the_tail(
    sampler: TargetSampler, world: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, sampler.along.last_step))
    tail = from_step(sampler, first)
    assert steps_of(tail, world) == steps_of(sampler)[first:]
    assert len(tail) == sum(map(len, steps_of(tail)))


@settings(max_examples=100, deadline=None)
@given(samplers(), st.data())
def test_the_rounds_that_are_left_are_foretold(sampler: TargetSampler, data: st.DataObject) -> None:
    tail = from_step(sampler, data.draw(st.integers(0, sampler.along.last_step)))
    assert tail.rounds() == {number for number, _ in keys_of(tail)}


# --- several source domains ----------------------------------------------------------------


def source_of(counts: list[int], seed: int) -> Source:
    """Domains of so many images, that lie one after another."""
    domains = tuple(f"d{i}" for i in range(len(counts)))
    names = [f"{d}/{i}" for d, count in zip(domains, counts, strict=True) for i in range(count)]
    labels = np.random.default_rng(seed % 2**32).integers(0, 2, len(names))
    split = Split(names, labels, lambda i: None)  # type: ignore[arg-type, return-value]
    return Source("s", ("a", "b"), split, split, domains=domains)


@st.composite
def domain_samplers(draw: st.DrawFn) -> tuple[Source, TrainSampler]:
    counts, seed = draw(st.lists(st.integers(1, 25), min_size=2, max_size=4)), draw(seeds)
    phase = Phase(
        name="p", train="head", epochs=draw(st.integers(1, 3)), sampling="domains",
        global_batch_size=draw(st.integers(1, 20)),
        gradient_accumulation=draw(st.integers(1, 3)),
    )  # fmt: skip
    source = source_of(counts, seed)
    return source, train_sampler(phase, source, seed, draw(st.integers(0, 4)))


seeds = st.integers(0, 2**64)


@settings(max_examples=60, deadline=None)
@given(domain_samplers())
def test_sampling_domains_draws_each_as_often_to_within_one_in_an_epoch(
    given_: tuple[Source, TrainSampler],
) -> None:
    source, sampler = given_
    ids, steps = source.domain_ids(), steps_of(sampler)
    for start in range(0, len(steps), sampler.steps_per_epoch):
        keys = list(chain(*chain(*steps[start : start + sampler.steps_per_epoch])))
        assert len(keys) == len(source.train)
        drawn = np.bincount(ids[[i for _, i in keys]], minlength=len(source.domains))
        assert drawn.max() - drawn.min() <= 1


@settings(max_examples=60, deadline=None)
@given(domain_samplers())
def test_and_no_image_of_a_domain_again_before_its_others(
    given_: tuple[Source, TrainSampler],
) -> None:
    source, sampler = given_
    ids = source.domain_ids()
    seen: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, i in chain(*chain(*steps_of(sampler))):
        seen[int(ids[i]), number].append(i)
    for (domain, number), images in seen.items():
        assert len(set(images)) == len(images)
        if (domain, number + 1) in seen:
            assert set(images) == set(np.flatnonzero(ids == domain).tolist())


@settings(max_examples=60, deadline=None)
@given(domain_samplers(), st.integers(1, 4), st.data())
def test_and_is_the_same_on_any_number_of_processes_from_any_step(
    given_: tuple[Source, TrainSampler], world: int, data: st.DataObject
) -> None:
    _, sampler = given_
    first = data.draw(st.integers(0, sampler.last_step))
    assert steps_of(replace(sampler, first_step=first), world) == steps_of(sampler)[first:]
    # The target beside it goes on the same way.
    target = TargetSampler(sampler, 5, 1)
    assert steps_of(from_step(target, first), world) == steps_of(target)[first:]
