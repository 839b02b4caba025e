"""Domains are told apart by what was not learnt from, and features come into the plane as said."""

from __future__ import annotations

import numpy as np
import pytest

from tl.domain_gap import (
    domain_accuracy,
    linear_classifier,
    neighbour_plane,
    principal_plane,
    proxy_a_distance,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def newton(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Minimise sum_i weight_i log(1 + exp(-±(w x_i + b))) + |w|²/2 to the last bit; (w, b)."""
    x = np.hstack([x, np.ones((len(x), 1))])
    prior = np.diag([1.0] * (x.shape[1] - 1) + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (weight * (p - y)) + prior @ w
        w -= np.linalg.solve((x.T * (weight * p * (1 - p))) @ x + prior, gradient)
    return w


@pytest.mark.parametrize("balanced", [False, True])
def test_the_classifier_is_the_minimum_of_what_its_docstring_says(balanced: bool) -> None:
    x = normal(0, 60, 3) * [1, 10, 100] + [5, 0, 0]
    y = (x @ [1.0, 0.1, 0.01] + normal(1, 60) > 5.8).astype(int)
    assert 5 < y.sum() < 25
    weight = 60 / (2 * np.bincount(y)[y]) if balanced else np.ones(60)
    *w, b = newton((x - x.mean(0)) / x.std(0), y, weight)
    found = linear_classifier(x, y, balanced)[-1]
    # scikit-learn stops where the gradient is below 1e-4.
    assert found.coef_[0] == pytest.approx(w, abs=1e-3)
    assert found.intercept_[0] == pytest.approx(b, abs=1e-3)


def test_domains_that_are_apart_are_told_and_domains_that_are_alike_are_not() -> None:
    a, b = normal(0, 200, 5), normal(1, 200, 5)
    assert domain_accuracy(a, b + 10, seed=0) == 1.0
    # 400 throws of a coin, within four standard deviations.
    assert domain_accuracy(a, b, seed=0) == pytest.approx(0.5, abs=4 * 0.5 / 20)


def test_what_is_learnt_by_heart_does_not_count() -> None:
    """With 100 features it knows any 40 images by heart; those it has not seen, it guesses."""
    accuracy = np.mean([domain_accuracy(*normal(s, 2, 40, 100), seed=s) for s in range(5)])
    assert accuracy == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(5 * 80))


def test_a_domain_with_more_images_weighs_no_more() -> None:
    """To say always the larger one would be right of 10 in 11 images."""
    found = [domain_accuracy(normal(s, 300, 2), normal(s + 99, 30, 2), seed=s) for s in range(5)]
    # Of the smaller domain 150 are guessed.
    assert np.mean(found) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(150))


def test_the_seed_decides() -> None:
    a, b = normal(0, 50, 4), normal(1, 50, 4) + 0.5
    assert domain_accuracy(a, b, seed=3) == domain_accuracy(a, b, seed=3)
    assert len({domain_accuracy(a, b, seed=s) for s in range(4)}) > 1


@pytest.mark.parametrize(("accuracy", "distance"), [(1, 2), (0.75, 1), (0.5, 0), (0.3, 0)])
def test_the_distance_follows_from_the_accuracy(accuracy: float, distance: float) -> None:
    assert proxy_a_distance(accuracy) == distance


def test_principal_components_are_those_of_the_covariance() -> None:
    x = normal(0, 80, 6) @ normal(1, 6, 6)
    xy, shares = principal_plane(x)
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    assert shares == pytest.approx(variances[:2] / variances.sum(), rel=1e-9)
    assert np.cov(xy.T) == pytest.approx(np.diag(variances[:2]), abs=1e-9 * variances[0])


def test_neighbours_stay_neighbours_and_the_seed_decides() -> None:
    group = np.repeat([0, 1, 2], 20)
    x = normal(0, 60, 8) + 20 * normal(1, 3, 8)[group]
    xy = neighbour_plane(x, seed=0)
    distances = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (group[distances.argmin(1)] == group).all()
    assert (neighbour_plane(x, seed=0) == xy).all()


def test_features_that_are_all_the_same_are_one_point() -> None:
    x = np.ones((12, 4))
    assert principal_plane(x)[1] == [0.0, 0.0]
    assert not principal_plane(x)[0].any()
    assert not neighbour_plane(x, seed=0).any()
