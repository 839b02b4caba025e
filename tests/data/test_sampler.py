"""Who gets which image: each once, in one order, on any number of processes, from any step."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl.data.sampler import (
    PADDING,
    EvaluationSampler,
    TrainSampler,
    epoch_order,
    share,
    share_of_pairs,
)

worlds = st.integers(1, 5)
seeds = st.integers(0, 2**64)


@st.composite
def samplers(draw: st.DrawFn) -> TrainSampler:
    """Of one to three whole epochs, for rank 0 of one process."""
    n, batch = draw(st.integers(1, 40)), draw(st.integers(1, 50))
    steps = math.ceil(n / batch) * draw(st.integers(1, 3))
    first_epoch, accumulation = draw(st.integers(0, 9)), draw(st.integers(1, 4))
    return TrainSampler(n, batch, draw(seeds), first_epoch, 0, steps, 0, 1, accumulation)


Keys = list[tuple[int, int]]


def of_all_ranks(sampler: TrainSampler, world: int) -> list[list[list[Keys]]]:
    """For each rank and step the micro-batches it gets."""
    ranks = []
    for rank in range(world):
        batches = iter(replace(sampler, rank=rank, world_size=world))
        steps = range(sampler.first_step, sampler.last_step)
        ranks.append([[next(batches) for _ in range(sampler.micro_batches_in(s))] for s in steps])
        assert next(batches, None) is None
    return ranks


def without_padding(keys: Keys) -> Keys:
    return [key for key in keys if key[1] != PADDING]


@given(st.integers(0, 200), worlds)
def test_shares_cover_all_and_differ_by_at_most_one(num: int, world: int) -> None:
    parts = [list(range(num)[share(num, rank, world)]) for rank in range(world)]
    assert list(chain(*parts)) == list(range(num))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 200), worlds)
def test_shares_of_pairs_cover_all_and_part_no_pair(num: int, world: int) -> None:
    parts = [list(range(num)[share_of_pairs(num, rank, world)]) for rank in range(world)]
    assert list(chain(*parts)) == list(range(num))
    pairs = [{i // 2 for i in part} for part in parts]
    assert sum(map(len, pairs)) == len(set().union(*pairs))
    assert max(map(len, pairs)) - min(map(len, pairs)) <= 1


@settings(max_examples=100, deadline=None)
@given(samplers(), worlds)
def test_pairs_change_no_step_and_no_micro_batch(sampler: TrainSampler, world: int) -> None:
    plain = list(replace(sampler, world_size=1, rank=0))
    mixed = of_all_ranks(replace(sampler, pairs=True), world)
    flat = [[batch for step in rank for batch in step] for rank in mixed]
    joined = [list(chain(*map(without_padding, parts))) for parts in zip(*flat, strict=True)]
    assert joined == plain


@settings(max_examples=150, deadline=None)
@given(samplers(), worlds)
def test_the_shares_of_a_step_are_the_slice_of_the_epochs_order(
    sampler: TrainSampler, world: int
) -> None:
    ranks = of_all_ranks(sampler, world)
    for step in range(sampler.last_step):
        epoch, position = divmod(step, sampler.steps_per_epoch)
        epoch += sampler.first_epoch
        start = position * sampler.global_batch_size
        order = epoch_order(sampler.num_images, sampler.seed, epoch)
        expected = [(epoch, i) for i in order[start : start + sampler.global_batch_size].tolist()]
        assert sampler.images_in(step) == len(expected)
        # By micro-batch, and within one by rank.
        shares = [list(micro_batch) for micro_batch in zip(*(r[step] for r in ranks), strict=True)]
        assert without_padding(list(chain(*chain(*shares)))) == expected
        for micro_batch in shares:
            sizes = [len(without_padding(keys)) for keys in micro_batch]
            assert 1 <= max(sizes) <= min(sizes) + 1
            for keys, size in zip(micro_batch, sizes, strict=True):
                # Padding stands alone, and only where there is nothing else.
                assert (keys == [(epoch, PADDING)]) if size == 0 else len(keys) == size


@settings(max_examples=100, deadline=None)
@given(samplers(), worlds)
def test_the_micro_batches_of_a_step_are_the_same_on_any_number_of_processes(
    sampler: TrainSampler, world: int
) -> None:
    [alone] = of_all_ranks(sampler, 1)
    together = of_all_ranks(sampler, world)
    for step, expected in enumerate(alone):
        for i, micro_batch in enumerate(expected):
            assert without_padding(list(chain(*(r[step][i] for r in together)))) == micro_batch


@settings(max_examples=100, deadline=None)
@given(samplers(), worlds)
def test_an_epoch_has_each_image_once(sampler: TrainSampler, world: int) -> None:
    ranks = of_all_ranks(sampler, world)
    seen = Counter(without_padding(list(chain(*chain(*chain(*ranks))))))
    epochs = sampler.last_step // sampler.steps_per_epoch
    first = sampler.first_epoch
    expected = {(e, i) for e in range(first, first + epochs) for i in range(sampler.num_images)}
    assert set(seen) == expected
    assert set(seen.values()) == {1}


@settings(max_examples=100, deadline=None)
@given(samplers(), worlds, st.data())
def test_going_on_from_any_step_gives_the_tail(
    sampler: TrainSampler, world: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, sampler.last_step))
    tail = replace(sampler, first_step=first)
    for whole, rest in zip(of_all_ranks(sampler, world), of_all_ranks(tail, world), strict=True):
        assert rest == whole[first:]
        assert len(tail) == sum(len(step) for step in rest)


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    order = epoch_order(50, 3, 4)
    assert sorted(order.tolist()) == list(range(50))
    assert order.dtype == np.int64
    assert np.array_equal(order, epoch_order(50, 3, 4))
    for other in ((3, 5), (4, 4), (4, 3)):
        assert not np.array_equal(order, epoch_order(50, *other))


def test_the_order_of_an_epoch_stays_what_it_was() -> None:
    """A checkpoint is continued by a later version only if this order is still the same."""
    assert epoch_order(10, 0, 0).tolist() == [7, 3, 2, 8, 9, 4, 5, 0, 6, 1]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), worlds)
def test_evaluation_has_each_image_once_in_as_many_batches_on_every_rank(
    n: int, batch: int, world: int
) -> None:
    ranks = [list(EvaluationSampler(n, batch, rank, world)) for rank in range(world)]
    seen = [i for batches in ranks for keys in batches for _, i in keys if i != PADDING]
    assert seen == list(range(n))
    lengths = {len(batches) for batches in ranks}
    assert lengths == {len(EvaluationSampler(n, batch, 0, world))}
    assert lengths.pop() >= 1
    for keys in chain(*ranks):
        assert 1 <= len(keys) <= batch
        assert keys == [(0, PADDING)] or PADDING not in [i for _, i in keys]


@pytest.mark.parametrize(("n", "batch", "steps"), [(10, 5, 2), (11, 5, 3), (3, 5, 1)])
def test_an_epoch_ends_with_what_is_left(n: int, batch: int, steps: int) -> None:
    sampler = TrainSampler(n, batch, 0, 0, 0, steps, 0, 1)
    assert sampler.steps_per_epoch == steps
    assert [len(keys) for keys in sampler] == [batch] * (steps - 1) + [n - batch * (steps - 1)]
