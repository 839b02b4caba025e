"""LogME is the maximum evidence; nearest neighbours are scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import ortho_group
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

from tl.transferability import knn_accuracy, logme

# The iteration ends where a round changes the evidence by 1e-12; it converges linearly, and float64
# sums of hundreds of terms are in it.
TOLERANCE = 1e-8
seeds = st.integers(0, 2**32 - 1)


def data(
    seed: int, n: int, width: int, classes: int = 3, signal: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Features (n, width) in which the classes have means that differ; each class occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    means = signal * rng.normal(size=(classes, width))
    return torch.from_numpy(means[labels] + rng.normal(size=(n, width))), torch.from_numpy(labels)


def log_evidence(x: np.ndarray, y: np.ndarray, alpha: float, beta: float) -> float:
    """log N(y; 0, I / beta + X X' / alpha): the weights integrated out, no formula of LogME's."""
    covariance = np.eye(len(y)) / beta + x @ x.T / alpha
    sign, log_det = np.linalg.slogdet(covariance)
    assert sign > 0
    return -0.5 * (y @ np.linalg.solve(covariance, y) + log_det + len(y) * math.log(2 * math.pi))


def maximum_evidence(x: Tensor, labels: Tensor) -> float:
    """By a search over log alpha and log beta from several starts, a class after the other."""
    best = []
    for label in labels.unique():
        y = (labels == label).double().numpy()
        ends = [
            minimize(
                lambda p, y=y: -log_evidence(x.numpy(), y, *np.exp(p)) / len(y),
                start,
                method="Nelder-Mead",
                bounds=[(-12, 18), (-12, 18)],
                options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000},
            )
            for start in ([0.0, 1.0], [4.0, 2.0], [-2.0, 3.0])
        ]
        best.append(max(-end.fun for end in ends))
    return float(np.mean(best))


@pytest.mark.parametrize(
    ("n", "width", "classes", "signal"),
    [(40, 6, 2, 1.0), (40, 6, 3, 0.3), (12, 30, 2, 1.0), (20, 20, 4, 0.5), (50, 3, 3, 0.0)],
)
def test_logme_is_the_evidence_at_its_maximum(
    n: int, width: int, classes: int, signal: float
) -> None:
    """More images than features, fewer, and as many; with a signal and without."""
    x, labels = data(n + width, n, width, classes, signal)
    assert logme(x, labels) == pytest.approx(maximum_evidence(x, labels), abs=1e-7)


def test_features_of_less_than_full_rank_are_no_harm() -> None:
    x, labels = data(1, 40, 4)
    twice = torch.cat([x, x, torch.zeros(40, 3, dtype=torch.float64)], 1)
    assert logme(twice, labels) == pytest.approx(maximum_evidence(twice, labels), abs=1e-7)


@given(seeds, st.integers(4, 30), st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_the_order_of_images_rotation_and_scale_do_not_matter(
    seed: int, n: int, width: int
) -> None:
    x, labels = data(seed, n, width, classes=2)
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(n))
    rotation = ortho_group.rvs(width, random_state=rng) if width > 1 else -np.eye(1)
    expected = pytest.approx(logme(x, labels), abs=TOLERANCE)
    assert logme(x[order], labels[order]) == expected
    assert logme(x @ torch.from_numpy(rotation), labels) == expected
    assert logme(1000 * x, labels) == expected
    assert logme(x, 1 - labels + 5) == expected  # what classes are called


@pytest.mark.parametrize("width", [3, 50])
def test_a_stronger_signal_scores_higher_and_noise_the_least(width: int) -> None:
    scores = [logme(*data(0, 100, width, 2, signal)) for signal in (0.0, 1.0, 2.0, 4.0)]
    assert scores == sorted(scores)


@pytest.mark.parametrize(
    "x", [torch.zeros(10, 4), torch.ones(10, 4), torch.eye(10), torch.eye(10)[:, :2]]
)
def test_features_of_no_use_or_of_all_give_a_number(x: Tensor) -> None:
    labels = torch.arange(10) % 2
    assert math.isfinite(logme(x, labels))
    holding = torch.stack([labels, 1 - labels], 1).float()  # the labels themselves
    assert logme(x, labels) < logme(holding, labels) < math.inf


@given(seeds, st.integers(5, 40), st.integers(1, 8), st.sampled_from([1, 3, 4]))
@settings(max_examples=15, deadline=None)
def test_nearest_neighbours_are_scikit_learns(seed: int, n: int, width: int, k: int) -> None:
    x, labels = data(seed, n, width + 1)
    nearest = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(x)
    distances, ids = nearest.kneighbors()  # of the images themselves: none is its own
    correct = 0
    for mine, (distance, theirs) in zip(
        labels.tolist(), zip(distances, ids, strict=True), strict=True
    ):
        votes = dict.fromkeys(labels.tolist(), (0, 0.0))
        for d, i in zip(distance, theirs, strict=True):
            count, similarity = votes[labels[i].item()]
            votes[labels[i].item()] = (count + 1, similarity + 1 - d)
        correct += max(votes, key=lambda c: votes[c]) == mine
    assert knn_accuracy(x, labels, k) == correct / n
    for rows, columns in ((1, 1), (7, 5), (n, 3)):
        assert knn_accuracy(x, labels, k, rows, columns) == correct / n


@pytest.mark.parametrize("k", [1, 5])
def test_leave_one_out_accuracy_is_scikit_learns(k: int) -> None:
    """Two classes and an odd number: no votes are equal, for which it takes the first class."""
    x, labels = data(3, 101, 10, classes=2, signal=0.3)
    classifier = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    called = cross_val_predict(classifier, x, labels, cv=LeaveOneOut())
    assert knn_accuracy(x.float(), labels, k) == (called == labels.numpy()).mean()


def test_there_are_no_more_neighbours_than_others() -> None:
    x, labels = data(0, 5, 3)
    knn_accuracy(x, labels, 4)
    with pytest.raises(ValueError, match="5 neighbours of 5 images"):
        knn_accuracy(x, labels, 5)
