"""Seeds for everything random, each a function of what it is for and of plain numbers."""

from __future__ import annotations

import zlib

import numpy as np


def seed_of(purpose: str, *numbers: int) -> int:
    """A 63-bit seed. Different purposes or numbers give unrelated seeds.

    The purpose keeps apart what the numbers alone would not: numpy fills (1, 2) up with zeros, so
    it is the same to it as (1, 2, 0).
    """
    sequence = np.random.SeedSequence([zlib.crc32(purpose.encode()), len(numbers), *numbers])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def hashes(seed: int, *numbers: np.ndarray) -> np.ndarray:
    """uint64 that look random, one for the numbers at each place; the arrays are broadcast.

    SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014), once for each number.
    """
    found = _mixed(np.array([seed], np.uint64))
    for values in numbers:
        found = _mixed(found + values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return found


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
