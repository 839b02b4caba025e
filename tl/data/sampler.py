"""Which images are in which step, and which of them a process takes.

Everything here is a function of (seed, epoch, step), of no state: a run goes on from any step, on
any number of processes, by counting. A global batch is cut into micro-batches and each of these
into the processes' shares, so the images of a step, and of a micro-batch, are the same however many
processes there are, and none is repeated or left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tl.config import Phase
from tl.data.class_sampling import ClassSampling
from tl.data.split import Source
from tl.randomness import seed_of

PADDING = -1
"""The id of a place in a batch that holds no image: it is given weight 0."""

Key = tuple[int, int]
"""(round, id of the image): what a data set is asked for. An image is seen once in a round, and in
each in another way. Without `ClassSampling` a round is an epoch, numbered through the run."""


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of ``range(num_images)``, int64."""
    return np.random.default_rng(seed_of("order", seed, epoch)).permutation(num_images)


def share(num: int, part: int, parts: int) -> slice:
    """One of ``parts`` parts of ``num`` items: contiguous, sizes differ by one at most."""
    small, extra = divmod(num, parts)
    start = part * small + min(part, extra)
    return slice(start, start + small + (part < extra))


def share_of_pairs(num: int, part: int, parts: int) -> slice:
    """The same, cut at even places only: items 2i and 2i + 1 are in one part."""
    pairs = share((num + 1) // 2, part, parts)
    return slice(min(2 * pairs.start, num), min(2 * pairs.stop, num))


@dataclass(frozen=True)
class TrainSampler:
    """The batches of one process for the steps ``first_step`` to ``last_step`` of a phase.

    Iterating gives the list of keys (round, id) of this process's share of each micro-batch; a step
    has `micro_batches_in` of them, one after another. The last step of an epoch has what is left. A
    process whose share is empty gets one place of padding, as it has to take part all the same.
    """

    num_images: int
    global_batch_size: int
    seed: int
    first_epoch: int
    """The run's epochs are numbered through its phases; this phase starts at this one."""
    first_step: int
    last_step: int
    rank: int
    world_size: int
    gradient_accumulation: int = 1
    by_class: ClassSampling | None = None
    """None: each image once an epoch"""
    pairs: bool = False
    """images 2i and 2i + 1 of a micro-batch are on the same process, to be mixed with each other"""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_images / self.global_batch_size)

    def images_in(self, step: int) -> int:
        """Number of images in the global batch of a step."""
        start = step % self.steps_per_epoch * self.global_batch_size
        return min(self.global_batch_size, self.num_images - start)

    def micro_batches_in(self, step: int) -> int:
        """Number of micro-batches of a step: none is without an image on every process."""
        return min(self.gradient_accumulation, self.images_in(step))

    def sizes_of_full_steps(self) -> set[int]:
        """How many images this process gets in a micro-batch, but for the last step of an epoch."""
        images, parts = self.images_in(0), self.micro_batches_in(0)
        micro_batches = (range(images)[share(images, part, parts)] for part in range(parts))
        mine = (self._share(len(whole)) for whole in micro_batches)
        return {max(1, part.stop - part.start) for part in mine}

    def __len__(self) -> int:
        return sum(self.micro_batches_in(step) for step in range(self.first_step, self.last_step))

    def __iter__(self) -> Iterator[list[Key]]:
        epochs = self._epochs(self.first_step // self.steps_per_epoch)
        for step in range(self.first_step, self.last_step):
            batch = step % self.steps_per_epoch
            if batch == 0 or step == self.first_step:
                rounds, order = next(epochs)
            start = batch * self.global_batch_size
            place = slice(start, start + self.global_batch_size)
            keys: list[Key] = list(zip(rounds[place].tolist(), order[place].tolist(), strict=True))
            yield from self.shares_of(keys, step)

    def shares_of(self, keys: list[Key], step: int) -> Iterator[list[Key]]:
        """What this process gets of each micro-batch of a step that has these keys."""
        micro_batches = self.micro_batches_in(step)
        for micro_batch in range(micro_batches):
            part = keys[share(len(keys), micro_batch, micro_batches)]
            mine = part[self._share(len(part))]
            yield mine or [(keys[0][0], PADDING)]

    def _epochs(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rounds and ids, each (N,) int64, of one epoch of the phase after another."""
        if self.by_class is not None:
            yield from self.by_class.epochs(first)
        for epoch in itertools.count(self.first_epoch + first):
            order = epoch_order(self.num_images, self.seed, epoch)
            yield np.full_like(order, epoch), order

    def rounds(self) -> set[int]:
        """The numbers of the rounds that the epochs of these steps are in."""
        first = self.first_step // self.steps_per_epoch
        last = math.ceil(self.last_step / self.steps_per_epoch)
        if self.by_class is not None:
            return self.by_class.rounds(first, last)
        return set(range(self.first_epoch + first, self.first_epoch + last))

    def _share(self, num: int) -> slice:
        """Which images of a micro-batch are this process's."""
        cut = share_of_pairs if self.pairs else share
        return cut(num, self.rank, self.world_size)


def train_sampler(
    phase: Phase,
    source: Source,
    seed: int,
    first_epoch: int,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    of_target: bool = False,
) -> TrainSampler:
    """The sampler of a phase as it is configured, from one of its steps to its end.

    Args:
        of_target: its epochs are passes over the target, as it trains on that alone.
    """
    images = len(source.train)
    if of_target:
        assert source.target is not None
        images = len(source.target.images)
    return TrainSampler(
        num_images=images,
        global_batch_size=phase.global_batch_size,
        seed=seed,
        first_epoch=first_epoch,
        first_step=first_step,
        last_step=phase.steps or phase.epochs * math.ceil(images / phase.global_batch_size),
        rank=rank,
        world_size=world_size,
        gradient_accumulation=phase.gradient_accumulation,
        pairs=phase.mixes,
        by_class=None if of_target else _by_class(phase, source, seed, first_epoch),
    )


def _by_class(phase: Phase, source: Source, seed: int, first_epoch: int) -> ClassSampling | None:
    if phase.sampling == "domains":  # each as often as any other, as classes are in balanced
        ids, weights = source.domain_ids(), [1] * len(source.domains)
        return ClassSampling(ids, weights, seed, first_epoch)
    labels, classes = source.train.labels, len(source.classes)
    return ClassSampling.of(phase.sampling, labels, classes, seed, first_epoch)


@dataclass(frozen=True)
class TargetSampler:
    """The target's batches of one process: as many images in each as the source has in it.

    The target has its own rounds, in an order of its own each, which go on over the ends of the
    source's epochs; the shorter of the two starts again. Where it is follows from the step alone.
    """

    along: TrainSampler
    num_images: int
    first_round: int
    """the target's rounds are numbered through the run; this phase starts with this one"""

    def __len__(self) -> int:
        return len(self.along)

    def __iter__(self) -> Iterator[list[Key]]:
        along = self.along
        taken = self.images_before(along.first_step)
        orders: dict[int, np.ndarray] = {}
        for step in range(along.first_step, along.last_step):
            images = along.images_in(step)
            rounds, places = np.divmod(np.arange(taken, taken + images), self.num_images)
            for number in set(rounds.tolist()) - orders.keys():
                orders = {n: order for n, order in orders.items() if n >= rounds[0]}
                orders[number] = self._order(number)
            keys = [
                (self.first_round + number, int(orders[number][place]))
                for number, place in zip(rounds.tolist(), places.tolist(), strict=True)
            ]
            taken += images
            yield from along.shares_of(keys, step)

    def images_before(self, step: int) -> int:
        """How many images the phase has taken before one of its steps."""
        epochs, batch = divmod(step, self.along.steps_per_epoch)
        return epochs * self.along.num_images + batch * self.along.global_batch_size

    def rounds(self) -> set[int]:
        """The numbers of the rounds that what is left of the phase takes images of."""
        taken, until = map(self.images_before, (self.along.first_step, self.along.last_step))
        if taken == until:
            return set()
        last = self.first_round + (until - 1) // self.num_images
        return set(range(self.first_round + taken // self.num_images, last + 1))

    def _order(self, number: int) -> np.ndarray:
        seed = seed_of("target", self.along.seed)
        return epoch_order(self.num_images, seed, self.first_round + number)


@dataclass(frozen=True)
class EvaluationSampler:
    """The batches in which one process goes over its share of all images, each image once.

    Every process gets the same number of batches, at least one; the last may be padding.
    """

    num_images: int
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        largest_share = math.ceil(self.num_images / self.world_size)
        return max(1, math.ceil(largest_share / self.batch_size))

    def __iter__(self) -> Iterator[list[Key]]:
        mine = range(self.num_images)[share(self.num_images, self.rank, self.world_size)]
        for batch in range(len(self)):
            ids = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(0, i) for i in ids] or [(0, PADDING)]


@dataclass(frozen=True)
class BatchShares:
    """The batches of one process: a contiguous share of those that one process would make.

    So a batch holds the same images however many processes there are, and the network says the
    same of them (to the last bit, on the same kind of device with as many CPU threads). Each gets
    the same number of batches; the last may be padding.
    """

    num_images: int
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return math.ceil(self._batches / self.world_size)

    def __iter__(self) -> Iterator[list[Key]]:
        mine = range(self._batches)[share(self._batches, self.rank, self.world_size)]
        for batch in mine:
            start = batch * self.batch_size
            yield [(0, i) for i in range(start, min(start + self.batch_size, self.num_images))]
        for _ in range(len(self) - len(mine)):
            yield [(0, PADDING)]

    @property
    def _batches(self) -> int:
        return math.ceil(self.num_images / self.batch_size)
