"""Data sources as somebody outside this project writes them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tl.config import DataConfig
from tl.data.digits import digits
from tl.data.split import Source, Target

WHERE = 100
"""the validation image at which the signal comes, where TEST_SIGNAL names one"""


def digits_with_a_signal(data: DataConfig, seed: int) -> Source:
    """Digits; while its validation images are read the process gets the signal of TEST_SIGNAL."""
    source = digits(data, seed)
    return replace(source, val=replace(source.val, read=partial(_read, source.val.read)))


def _read(read: Callable[[int], Image.Image], i: int) -> Any:
    name = os.environ.get("TEST_SIGNAL")
    if i == WHERE and name:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.05)  # the thread that hears it takes a moment
    return read(i)


def two_styles(data: DataConfig, seed: int) -> Source:
    """Digits to learn from, and inverted ones to adapt to, labelled as TEST_LABELS says.

    They are ``true``, ``shuffled``, or there are ``none``. The names are the same.
    """
    source = digits(data, seed)
    found = source.val.take(range(100, 110))
    found = replace(found, read=partial(_inverted, found.read))
    images = found.without_labels()
    labels = os.environ["TEST_LABELS"]
    if labels == "shuffled":
        found = replace(found, labels=np.roll(found.labels, 3))
    test = images if labels == "none" else found
    return replace(source, target=Target("inverted", images, test))


def _inverted(read: Callable[[int], Image.Image], i: int) -> Image.Image:
    return ImageOps.invert(read(i))
