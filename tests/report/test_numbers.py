"""The statistics of a report, against scipy, scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_calibration_error

from tl.report.numbers import (
    calibration,
    class_rows,
    confused_pairs,
    sign_test,
    thinned,
    wilson,
)
from tl.report.seen import BINS, Watch

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_scipys(right_of: tuple[int, int]) -> None:
    right, of = right_of
    theirs = binomtest(right, of).proportion_ci(method="wilson")
    # Both compute the same formula in float64.
    assert wilson(right, of) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    low, high = wilson(right, of)
    assert 0 <= low <= right / of <= high <= 1


def test_of_no_image_nothing_is_known() -> None:
    assert wilson(0, 0) == (0, 1)
    assert calibration(np.zeros((3, BINS), dtype=np.int64)) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_the_sign_test_is_the_exact_binomial_one(first: int, second: int) -> None:
    n = first + second
    theirs = binomtest(min(first, second), n, 0.5).pvalue if n else 1.0
    # lgamma of some hundreds has an error of 1e-13, which the exponential passes on.
    assert sign_test(first, second) == pytest.approx(theirs, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(2, 8))
def test_the_calibration_error_is_that_of_torchmetrics(seed: int, n: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes, (n,), generator=generator)
    watch = Watch(n, classes, CPU)
    watch.add(torch.arange(n), labels, logits, torch.ones(n))
    seen = watch.gather(lambda x: x, lambda x: x)
    found = calibration(seen.bins)
    assert found is not None
    theirs = multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=BINS)
    # torchmetrics adds up in float32, and confidences are kept to 1e-9.
    assert found.ece == pytest.approx(theirs.item(), abs=2e-6)
    p, called = logits.softmax(1).max(1)
    assert found.confidence == pytest.approx(p.mean().item(), abs=1e-8)
    assert found.accuracy == (called == labels).double().mean().item()


def test_classes_come_worst_first_with_the_numbers_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)  # of six classes: one has no image
    called = np.where(rng.random(200) < 0.7, labels, rng.integers(0, 6, 200))
    pairs, counts = np.unique(np.stack([labels, called]), axis=1, return_counts=True)
    confusion = np.concatenate([pairs, counts[None]]).T.astype(np.int64)
    rows = class_rows(confusion, 6)
    assert [row.f1 for row in rows[:5]] == sorted(row.f1 for row in rows[:5])
    assert rows[5].number == 5
    assert rows[5].recall is None
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, called, labels=range(6), zero_division=0
    )
    for row in rows[:5]:
        i = row.number
        # The same divisions of the same counts.
        assert row.precision == pytest.approx(precision[i])
        assert row.recall == pytest.approx(recall[i])
        assert row.f1 == pytest.approx(f1[i])
        assert row.images == support[i]
    wrong = confused_pairs(confusion, 3)
    assert len(wrong) == 3
    assert wrong[0][2] == max(n for a, b, n in confusion.tolist() if a != b)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(2, 50))
def test_a_thinned_curve_keeps_its_range_and_its_end(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    found = thinned(points, most)
    assert len(found) <= most
    assert found[-1] == points[-1]
    xs = [x for x, _ in found]
    assert xs == sorted(xs)
    slack = 1e-9 * max(map(abs, values))  # means are rounded
    assert all(min(values) - slack <= y <= max(values) + slack for _, y in found)
