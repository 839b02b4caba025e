"""Class weights, focal loss and shares of labels are their formulas, in any batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tl.objectives.cross_entropy import class_weights, cross_entropy

# Float64, of some terms near 1.
CLOSE = 1e-12


def logits(n: int, c: int, scale: float = 2.0) -> Tensor:
    draw = torch.Generator().manual_seed(10 * n + c)
    return scale * torch.randn(n, c, generator=draw, dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 8), st.integers(2, 6), st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    st.sampled_from([0.0, 0.1, 0.5]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_it_is_the_sum_over_shares_weights_and_how_hard_an_image_is(
    n: int, c: int, gamma: float, smoothing: float, weighted: bool, mixes: bool
) -> None:
    z = logits(n, c)
    draw = torch.Generator().manual_seed(n)
    labels = torch.randint(0, c, (n,), generator=draw)
    t = F.one_hot(labels, c).double()
    if mixes:
        t = 0.3 * t + 0.7 * t.flip(0)
    weights = torch.rand(c, generator=draw, dtype=torch.float64) if weighted else None
    found = cross_entropy(
        z, t if mixes else labels, smoothing=smoothing, weights=weights, gamma=gamma
    )
    for i in range(n):
        p = [math.exp(v) / sum(map(math.exp, z[i].tolist())) for v in z[i].tolist()]
        expected = -sum(
            ((1 - smoothing) * t[i, k].item() + smoothing / c)
            * (1.0 if weights is None else weights[k].item())
            * (1 - p[k]) ** gamma
            * math.log(p[k])
            for k in range(c)
        )
        assert found[i].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_gradient_of_the_focal_loss_is_that_of_finite_differences(gamma: float) -> None:
    z, labels = logits(4, 3).requires_grad_(True), torch.tensor([0, 1, 2, 0])
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy(z, labels, smoothing=0.1, weights=weights, gamma=gamma), z
    )


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_that_is_as_easy_as_can_be_has_a_gradient_that_is_a_number(
    gamma: float, dtype: torch.dtype
) -> None:
    z = torch.tensor([[500.0, 0.0], [0.0, 500.0], [-500.0, 0.0]], dtype=dtype, requires_grad=True)
    losses = cross_entropy(z, torch.tensor([0, 1, 0]), gamma=gamma)
    losses.sum().backward()
    assert z.grad is not None
    assert losses.isfinite().all()
    assert z.grad.isfinite().all()
    assert (losses[0].item(), losses[2].item()) == (0.0, 500.0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 5000), min_size=2, max_size=6).filter(any),
    st.sampled_from(["balanced", "effective(0)", "effective(0.9)", "effective(0.9999)"]),
)
def test_weights_follow_the_counts_and_are_1_in_the_mean_over_images(
    counts: list[int], kind: str
) -> None:
    found = class_weights(kind, torch.tensor(counts))
    assert found is not None
    raw = []
    for n in counts:
        if kind == "balanced":
            raw.append(1 / n if n else 0.0)
        else:
            beta = float(kind[10:-1])
            raw.append((1 - beta) / (1 - beta**n) if n else 0.0)
    mean = sum(n * w for n, w in zip(counts, raw, strict=True)) / sum(counts)
    assert found.tolist() == pytest.approx([w / mean for w in raw], rel=1e-9)


def test_without_weights_there_are_none() -> None:
    assert class_weights("none", None) is None
