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
