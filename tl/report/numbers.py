"""The statistics of a report: plain functions of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tl.report.seen import BINS, UNIT

Z95 = 1.959963984540054
"""of the normal distribution 95 % lie within this many standard deviations of the mean"""


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, ``right`` of ``of``.

    With p = right / n and z = 1.96 its middle is (p + z²/2n) / (1 + z²/n), and it reaches
    z / (1 + z²/n) · √(p(1 − p)/n + z²/4n²) to each side. E. B. Wilson, "Probable inference, the
    law of succession, and statistical inference", JASA 22, 1927. It holds for few images and for
    shares near 0 and 1, where p ± z√(p(1 − p)/n) does not.
    """
    if of == 0:
        return 0.0, 1.0
    p, z2 = right / of, Z95**2
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    reach = Z95 / (1 + z2 / of) * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    # Rounding may put the end of 0 of n, or of n of n, a little beside it.
    low = 0.0 if right == 0 else max(0.0, middle - reach)
    return low, 1.0 if right == of else min(1.0, middle + reach)


@dataclass(frozen=True)
class Calibration:
    """How far confidences are from the share that is right."""

    ece: float
    confidence: float
    """mean over all images"""
    accuracy: float
    bins: list[tuple[int, float, float]]
    """of each bin that holds any: images, mean confidence, accuracy"""


def calibration(bins: np.ndarray) -> Calibration | None:
    """From the counts of `tl.report.seen.Seen.bins`; None if there is no image.

    Expected calibration error: ECE = Σ_m (n_m / n) · |acc(m) − conf(m)|, over 15 bins of equal
    width. C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks",
    ICML 2017.
    """
    counts, right = bins[0].tolist(), bins[1].tolist()
    sums = [int(total) / UNIT for total in bins[2]]
    n = sum(counts)
    if not n:
        return None
    gaps = (abs(r - s) for r, s in zip(right, sums, strict=True))
    some = [m for m in range(BINS) if counts[m]]
    return Calibration(
        ece=math.fsum(gaps) / n,
        confidence=math.fsum(sums) / n,
        accuracy=sum(right) / n,
        bins=[(counts[m], sums[m] / counts[m], right[m] / counts[m]) for m in some],
    )


def sign_test(first: int, second: int) -> float:
    """The two-sided p-value of the exact sign test, McNemar's with binomial probabilities.

    ``first`` and ``second`` count the images that only one of two models has right. If neither is
    better they are heads and tails of a fair coin: p = min(1, 2 · P(X ≤ min)), X ~ B(n, ½).
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947.
    """
    n = first + second
    log_half = n * math.log(2)
    terms = (
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - log_half)
        for k in range(min(first, second) + 1)
    )
    return min(1.0, 2 * math.fsum(terms))


@dataclass(frozen=True)
class ClassRow:
    """How a class fares."""

    number: int
    precision: float | None
    """None: nothing was called so"""
    recall: float | None
    """None: there is no image of it"""
    f1: float | None
    images: int
    right: int


def class_rows(confusion: np.ndarray, num_classes: int) -> list[ClassRow]:
    """Of all classes, the one of lowest F1 first; classes without images last.

    Args:
        confusion: int64 (K, 3): class, what it was called, how many.
    """
    images, called, hits = (np.zeros(num_classes, dtype=np.int64) for _ in range(3))
    labels, calls, counts = confusion.T
    np.add.at(images, labels, counts)
    np.add.at(called, calls, counts)
    on_diagonal = labels == calls
    np.add.at(hits, labels[on_diagonal], counts[on_diagonal])
    rows = []
    for i in range(num_classes):
        n, c, h = int(images[i]), int(called[i]), int(hits[i])
        rows.append(
            ClassRow(
                number=i,
                precision=h / c if c else None,
                recall=h / n if n else None,
                f1=2 * h / (n + c) if n else None,
                images=n,
                right=h,
            )
        )
    return sorted(rows, key=lambda r: (r.f1 is None, r.f1 or 0.0, r.recall or 0.0, r.number))


def confused_pairs(confusion: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The pairs (class, called, how many) that were mistaken most often."""
    wrong = [tuple(row) for row in confusion.tolist() if row[0] != row[1]]
    return sorted(wrong, key=lambda row: (-row[2], row[0], row[1]))[:most]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points of a curve: means over stretches of equal number, the last one kept.

    A curve of a million steps has to be a drawing of a few kilobytes.
    """
    if len(points) <= most:
        return list(points)
    edges = np.linspace(0, len(points), most + 1).astype(int)
    values = np.array(points, dtype=np.float64)
    means = [tuple(values[a:b].mean(0).tolist()) for a, b in pairwise(edges)]
    return [*means[:-1], points[-1]]
