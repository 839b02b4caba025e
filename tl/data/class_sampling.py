"""Sampling by class: how often each class is drawn in an epoch, and which of its images are.

A class of n images is drawn in proportion to n ** (1 - p): p = 0 is each image once, p = 1 each
class as often as any other, p = 0.5 square-root sampling (Kang et al., "Decoupling representation
and classifier for long-tailed recognition", ICLR 2020, whose q is 1 - p). An epoch stays as many
images long as there are. Of N · share draws that a class has coming in an epoch it gets the whole
part, or one more: systematic sampling (Madow, 1949), from a start that the epoch draws.

The images of a class come in rounds. In a round each of them comes once, in an order of its own; an
epoch goes on in the round where the one before has ended. So no image comes again before all others
of its class have, over the ends of epochs too, and (round, id) never comes twice in a phase.

As everywhere, all of it is a function of the seed and of counting.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tl.data.split import Source, some
from tl.errors import UserError
from tl.randomness import hashes, seed_of

START_BITS = 32


def weights_of(sampling: str, counts: np.ndarray) -> list[int] | None:
    """The classes' weights as whole numbers, from their numbers of images; None: uniform sampling.

    Python's decimals give the same root on every machine, which floats do not promise.
    """
    weighted = re.fullmatch(r"weighted\((.*)\)", sampling)
    p = decimal.Decimal(weighted[1]) if weighted else decimal.Decimal(int(sampling == "balanced"))
    if p == 0:
        return None
    if p == 1:
        return [1] * len(counts)
    with decimal.localcontext(decimal.Context(prec=28)):
        root = {n: int(decimal.Decimal(n) ** (1 - p) * 10**12) for n in set(counts.tolist())}
    return [root[n] for n in counts.tolist()]


@dataclass(frozen=True, eq=False)
class ClassSampling:
    """What is drawn in the epochs of a phase that samples by class."""

    labels: np.ndarray
    """(N,) int64, of the training images"""
    weights: list[int]
    """of the classes 0 to C - 1: they are drawn in proportion to these"""
    seed: int
    first_epoch: int
    """the number, in the run, of the phase's first epoch; its first round has the same"""

    @staticmethod
    def of(
        sampling: str, labels: np.ndarray, num_classes: int, seed: int, first_epoch: int
    ) -> ClassSampling | None:
        """Of a config's ``sampling``; None if that is uniform."""
        weights = weights_of(sampling, np.bincount(labels, minlength=num_classes))
        return None if weights is None else ClassSampling(labels, weights, seed, first_epoch)

    @cached_property
    def members(self) -> list[np.ndarray]:
        """The ids of each class, ascending."""
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=len(self.weights)))
        return np.split(order, ends[:-1])

    def draws(self, epoch: int) -> np.ndarray:
        """How often each class is drawn in an epoch of the phase, counted from 0: (C,) int64."""
        # In whole numbers, so that a share that comes out even is even.
        start = seed_of("classes", self.seed, self.first_epoch + epoch) >> (63 - START_BITS)
        total, num = sum(self.weights), len(self.labels)
        reached, below, found = 0, 0, []
        for weight in self.weights:
            reached += weight
            until = (((num * reached) << START_BITS) + start * total) // (total << START_BITS)
            found.append(until - below)
            below = until
        return np.array(found, dtype=np.int64)

    def draws_before(self, epoch: int) -> np.ndarray:
        """The same for all epochs of the phase before one of them."""
        zero = np.zeros(len(self.weights), np.int64)
        return sum((self.draws(e) for e in range(epoch)), start=zero)

    def epochs(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rounds and ids of one epoch after another, each (N,) int64 in the order they come in.

        Args:
            first: the epoch of the phase to begin with, counted from 0.
        """
        before, epoch = self.draws_before(first), first
        while True:
            draws = self.draws(epoch)
            parts = [self._of_class(c, before[c], draws[c]) for c in np.flatnonzero(draws).tolist()]
            rounds, ids = (np.concatenate(both) for both in zip(*parts, strict=True))
            number = self.first_epoch + epoch
            order = np.random.default_rng(seed_of("order", self.seed, number)).permutation(len(ids))
            yield rounds[order] + self.first_epoch, ids[order]
            before, epoch = before + draws, epoch + 1

    def _of_class(self, c: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rounds, from 0, and ids of ``count`` draws of a class after ``first`` of them."""
        members = self.members[c]
        begun, skipped = divmod(int(first), len(members))
        rounds = np.arange(begun, begun + -(-(skipped + int(count)) // len(members)))
        keys = hashes(seed_of("rounds", self.seed, self.first_epoch), rounds[:, None], members)
        ids = members[np.argsort(keys, axis=1, kind="stable")]
        whole = slice(skipped, skipped + int(count))
        return np.repeat(rounds, len(members))[whole], ids.reshape(-1)[whole]

    def rounds(self, first: int, last: int) -> set[int]:
        """The numbers of the rounds that the epochs ``first`` to ``last`` (not included) are in."""
        begin, end = self.draws_before(first), self.draws_before(last)
        found: set[int] = set()
        for members, low, high in zip(self.members, begin.tolist(), end.tolist(), strict=True):
            if high > low:
                found.update(range(low // len(members), (high - 1) // len(members) + 1))
        return {self.first_epoch + number for number in found}


def check_sampling(sampling: str, source: Source) -> None:
    """Raise UserError if images are drawn by class, or by domain, and one of them has none."""
    if sampling == "domains":
        if len(source.domains) < 2:
            raise UserError(
                "sampling=domains draws from several source domains, and there is one: name them "
                "in data.source_domains, or take sampling=uniform"
            )
        groups, names, key = source.domain_ids(), source.domains, "data.source_domains"
    elif sampling == "uniform":
        return
    else:
        groups, names, key = source.train.labels, source.classes, "data.classes"
    counts = np.bincount(groups, minlength=len(names))
    if counts.all() or (sampling != "domains" and weights_of(sampling, counts) is None):
        return
    empty = [names[i] for i in np.flatnonzero(counts == 0)]
    each, what = ("domain", "domains") if sampling == "domains" else ("class", "classes")
    raise UserError(
        f"sampling={sampling} draws from every {each}, and there are no training images of "
        f"{some(empty)}: leave out these {what} ({key}), or take sampling=uniform"
    )
