"""What needs no labels is its paper's formula, computed here in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from torch import Tensor

from tl import label_free
from tl.label_free import entropy, information_maximisation, soft_neighbourhood_density

# Float64 sums in another order.
CLOSE = 1e-12
seeds = st.integers(0, 2**32 - 1)


def probabilities(seed: int, n: int, classes: int, sharpness: float = 1.0) -> Tensor:
    draw = np.random.default_rng(seed)
    return torch.from_numpy(sharpness * draw.normal(size=(n, classes))).softmax(1)


def im(p: Tensor) -> float:
    return information_maximisation(p.mean(0), entropy(p).mean().item())


def snd(p: Tensor, temperature: float) -> float:
    """One image after another, with the others picked out by hand."""
    rows, found = p.double().tolist(), []
    for i, mine in enumerate(rows):
        weights = []
        for j, theirs in enumerate(rows):
            if j != i:
                inner = math.fsum(a * b for a, b in zip(mine, theirs, strict=True))
                cosine = inner / math.hypot(*mine) / math.hypot(*theirs)
                weights.append(math.exp((cosine - 1) / temperature))
        shares = [weight / math.fsum(weights) for weight in weights]
        found.append(-math.fsum(share * math.log(share) for share in shares if share))
    return math.fsum(found) / len(found)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 6), st.sampled_from([0.1, 1.0, 30.0]))
def test_information_maximisation_is_entropy_of_the_mean_less_mean_of_entropies(
    seed: int, n: int, classes: int, sharpness: float
) -> None:
    p = probabilities(seed, n, classes, sharpness)

    def h(row: list[float]) -> float:
        return -math.fsum(x * math.log(x) for x in row if x)

    expected = h(p.mean(0).tolist()) - math.fsum(h(row) for row in p.tolist()) / n
    assert im(p) == pytest.approx(expected, abs=CLOSE)
    assert -CLOSE <= im(p) <= math.log(classes) + CLOSE


def test_information_maximisation_is_the_mutual_information_of_image_and_prediction() -> None:
    """scikit-learn's, of a table of how often each of four images is called each class."""
    counts = np.array([[7, 1, 2], [0, 10, 0], [3, 3, 4], [1, 0, 9]])
    pairs = [(i, c) for i in range(4) for c in range(3) for _ in range(counts[i, c])]
    expected = mutual_info_score(*np.array(pairs).T)
    assert im(torch.from_numpy(counts) / 10) == pytest.approx(expected, abs=1e-7)  # float32 tenths


def test_information_maximisation_is_most_for_confident_images_of_all_classes() -> None:
    assert im(torch.eye(4).repeat(3, 1)) == pytest.approx(math.log(4), abs=CLOSE)
    assert im(torch.eye(4)[[1, 1, 1]]) == 0.0
    assert im(torch.full((5, 4), 0.25)) == pytest.approx(0, abs=CLOSE)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 12), st.integers(1, 6), st.sampled_from([0.05, 0.7]))
def test_density_is_the_mean_entropy_of_the_shares_of_neighbours(
    seed: int, n: int, classes: int, temperature: float
) -> None:
    p = probabilities(seed, n, classes, 2.0).float()
    found = soft_neighbourhood_density(p, temperature)
    assert found == pytest.approx(snd(p, temperature), rel=1e-10, abs=CLOSE)
    assert -CLOSE <= found <= math.log(max(n - 1, 1)) + CLOSE


def test_blocks_and_the_order_of_images_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    p = probabilities(1, 23, 4, 3.0)
    whole = soft_neighbourhood_density(p)
    assert soft_neighbourhood_density(p.flip(0)) == pytest.approx(whole, rel=CLOSE)
    for rows in (1, 5, 22):
        monkeypatch.setattr(label_free, "ROWS", rows)
        assert soft_neighbourhood_density(p) == pytest.approx(whole, rel=CLOSE)


def test_density_counts_the_images_that_are_called_alike() -> None:
    """Three of each of four classes have two neighbours, twelve of one class have eleven."""
    gathered = 0.97 * torch.eye(4).repeat(3, 1) + 0.0075
    assert soft_neighbourhood_density(gathered) == pytest.approx(math.log(2), abs=1e-3)
    assert soft_neighbourhood_density(gathered[:1].expand(12, 4)) == pytest.approx(math.log(11))


@pytest.mark.parametrize("n", [0, 1])
def test_there_is_no_neighbourhood_of_fewer_than_two(n: int) -> None:
    assert soft_neighbourhood_density(torch.ones(n, 3) / 3) == 0.0


def test_of_more_images_than_the_most_evenly_spaced_ones_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = probabilities(2, 10, 3)
    monkeypatch.setattr(label_free, "MOST", 4)
    assert soft_neighbourhood_density(p) == pytest.approx(snd(p[[0, 2, 5, 7]], 0.05), rel=1e-10)
    assert soft_neighbourhood_density(p[:4]) == pytest.approx(snd(p[:4], 0.05), rel=1e-10)
