"""What adaptation by statistics adds is its paper's formula, computed here pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from adaptation_toys import adaptation, rows_of_all, two_domains
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tl.freezing import freeze, trainable_names
from tl.objectives import Objective
from tl.objectives.coral import covariance, covariance_distance
from tl.objectives.mcc import class_confusion
from tl.objectives.mean_discrepancy import (
    bandwidth,
    gaussians,
    mean_discrepancy,
    squared_distances,
)

Array = NDArray[np.float64]
# Float64 sums in another order, some of which cancel.
CLOSE = 1e-10
N = 7
PROGRESS = 0.3
OPTIONS: dict[str, dict[str, Any]] = {
    "coral": {"strength": 1e6, "layer": "features"},
    "dan": {"strength": 0.7, "kernels": 3},
    "jan": {"strength": 0.7, "alpha": 4.0, "kernels": 3, "width": 0.9},
    "mcc": {"strength": 0.6, "temperature": 1.7},
    "cdan_mcc": {"width": 7, "mcc": 0.6, "temperature": 1.7},
    "afn": {"strength": 0.4, "step": 0.5},
}
"""far from the defaults, so that each of them matters"""
seeds = st.integers(0, 2**32 - 1)


def term(name: str, **options: Any) -> tuple[Objective, list[tuple[Array, Array]], float]:
    """The objective, features and logits of each domain, and what is added to cross-entropy."""
    made = adaptation(name, OPTIONS[name] | options)
    batch = rows_of_all(two_domains(N), range(N))
    plain = adaptation("supervised", {})(batch, PROGRESS)["loss"].item()
    output = made(batch, PROGRESS)
    added = output["loss"].item() - plain
    logged = sum(v.item() for k, v in output.items() if k in (name, *name.split("_")))
    assert logged / N == pytest.approx(added, rel=1e-8, abs=1e-12)
    seen = []
    for images in (batch["image"], batch["target"]["image"]):
        features = made.network.model[:6](images)  # type: ignore[index]
        logits = made.network.model[6:](features)  # type: ignore[index]
        seen.append((features.detach().numpy(), logits.detach().numpy()))
    return made, seen, added


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    e = np.exp(logits / temperature)
    return np.asarray(e / e.sum(1, keepdims=True))


def pairs(x: Array, y: Array) -> list[float]:
    return [math.fsum((a - b) ** 2) for a in x for b in y]


def gaussian(distance: float, mean: float, kernels: int) -> float:
    """Xlearn writes its scales as mean / 2^(kernels // 2), times 2, times 2, …"""
    scale, total = mean / 2 ** (kernels // 2), 0.0
    for _ in range(kernels):
        total += math.exp(-distance / scale)
        scale *= 2
    return total


def mean_distance(x: Array, y: Array) -> float:
    both = np.concatenate([x, y])
    return math.fsum(pairs(both, both)) / (len(both) * (len(both) - 1))


def mmd(kernel: Any, source: list[Any], target: list[Any]) -> float:
    def within(points: list[Any]) -> float:
        values = [
            kernel(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j
        ]
        return math.fsum(values) / len(values)

    between = [kernel(a, b) for a in source for b in target]
    return within(source) + within(target) - 2 * math.fsum(between) / len(between)


@pytest.mark.parametrize("layer", ["logits", "features"])
def test_coral_is_the_distance_of_numpys_covariances(layer: str) -> None:
    _, seen, found = term("coral", layer=layer)
    source, target = (domain[layer == "logits"] for domain in seen)
    d = source.shape[1]
    difference = np.cov(source, rowvar=False) - np.cov(target, rowvar=False)
    expected = 1e6 * math.fsum(x**2 for x in difference.flat) / (4 * d**2)
    assert found == pytest.approx(expected, rel=1e-8)


def test_coral_is_of_the_logits_by_default_as_in_the_paper() -> None:
    assert adaptation("coral", {}).options.layer == "logits"


def test_dan_is_the_unbiased_discrepancy_of_features_and_of_logits() -> None:
    _, seen, found = term("dan")
    expected = 0.0
    for source, target in zip(*seen, strict=True):
        mean = mean_distance(source, target)

        def kernel(a: Array, b: Array, mean: float = mean) -> float:
            return gaussian(math.fsum((a - b) ** 2), mean, 3)

        expected += 0.7 * mmd(kernel, list(source), list(target))
    assert found == pytest.approx(expected, rel=1e-8)


def test_jan_is_the_discrepancy_by_the_product_of_kernels_and_grows_with_progress() -> None:
    _, seen, found = term("jan")
    (f_source, z_source), (f_target, z_target) = seen
    mean = mean_distance(f_source, f_target)

    def kernel(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
        of_predictions = math.exp(-math.fsum((a[1] - b[1]) ** 2) / 0.9)
        return gaussian(math.fsum((a[0] - b[0]) ** 2), mean, 3) * of_predictions

    domains = [
        list(zip(f_source, softmax(z_source), strict=True)),
        list(zip(f_target, softmax(z_target), strict=True)),
    ]
    strength = 0.7 * (2 / (1 + math.exp(-4.0 * PROGRESS)) - 1)
    assert found == pytest.approx(strength * mmd(kernel, *domains), rel=1e-8)


def confusion(logits: Array, temperature: float) -> float:
    """Class by class, with the paper's weights of mean 1."""
    p = softmax(logits, temperature)
    certainty = [1 + math.exp(math.fsum(x * math.log(x) for x in row)) for row in p]
    weights = [len(p) * c / math.fsum(certainty) for c in certainty]
    total, classes = 0.0, p.shape[1]
    for i in range(classes):
        row = [
            math.fsum(w * y[i] * y[j] for w, y in zip(weights, p, strict=True))
            for j in range(classes)
        ]
        total += (math.fsum(row) - row[i]) / math.fsum(row)
    return total / classes


def test_mcc_is_the_confusion_of_the_targets_classes() -> None:
    _, seen, found = term("mcc")
    assert found == pytest.approx(0.6 * confusion(seen[1][1], 1.7), rel=1e-9)


def test_cdan_mcc_is_cdan_and_mcc() -> None:
    made, seen, found = term("cdan_mcc")
    batch = rows_of_all(two_domains(N), range(N))
    alone = adaptation("cdan", {"width": 7})
    alone.load_state_dict(made.state_dict())
    cdan = alone(batch, PROGRESS)["cdan"].item() / N
    assert found - cdan == pytest.approx(0.6 * confusion(seen[1][1], 1.7), rel=1e-8)


def test_afn_is_the_square_of_the_step_and_pulls_each_norm_up() -> None:
    made, seen, found = term("afn")
    assert found == pytest.approx(2 * 0.4 * 0.5**2, rel=1e-9)
    batch = rows_of_all(two_domains(N), range(N))
    output = made(batch, PROGRESS)
    for name, (features, _) in zip(("source_norm", "target_norm"), seen, strict=True):
        expected = sum(math.sqrt(math.fsum(row**2)) for row in features)
        assert output[name].item() == pytest.approx(expected, rel=1e-10)


def test_afns_gradient_is_along_the_features_by_twice_the_step() -> None:
    made = adaptation("afn", OPTIONS["afn"])
    batch = rows_of_all(two_domains(N), range(N))
    seen: list[Tensor] = []
    body = made.network.model[5]  # type: ignore[index]
    body.register_forward_hook(
        lambda *arguments: arguments[2].retain_grad() or seen.append(arguments[2])
    )
    output = made(batch, PROGRESS)
    output["loss"].backward()
    [features] = seen
    target = features[N:].detach()
    assert features.grad is not None
    # The target is in no other term.
    expected = -2 * 0.4 * 0.5 / N * target / target.norm(dim=1, keepdim=True)
    torch.testing.assert_close(features.grad[N:], expected, rtol=1e-9, atol=1e-12)


def single(made: Objective, batch: dict[str, Any]) -> dict[str, Any]:
    made.float()
    target = dict(batch["target"], image=batch["target"]["image"].float())
    return dict(batch, image=batch["image"].float(), target=target)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_under_half_precision_what_is_added_is_computed_in_float32_at_least(
    name: str, half: torch.dtype | None
) -> None:
    made = adaptation(name, OPTIONS[name])
    batch = rows_of_all(two_domains(N), range(N))
    precise = made(batch, PROGRESS)
    batch = single(made, batch)
    with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        output = made(batch, PROGRESS)
    output["loss"].backward()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
    for key, value in output.items():
        if "accuracy" not in key:
            assert value.dtype == torch.float32, key
            # Some roundings of the network's. A discrepancy or a covariance is a difference of
            # features that here differ little, and have 8 bits in bfloat16.
            rel = {None: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.2}[half]
            assert value.item() == pytest.approx(precise[key].item(), rel=rel), key


@pytest.mark.parametrize("name", OPTIONS)
def test_cached_features_of_the_frozen_prefix_give_the_same(name: str) -> None:
    made, batch = adaptation(name, OPTIONS[name]), rows_of_all(two_domains(N), range(N))
    freeze(made.network, trainable_names(made.network, "head"))
    cached = dict(batch, start=2, target=dict(batch["target"], start=2))
    for part in (cached, cached["target"]):
        part["image"] = made.network.features(part["image"], 2)
    expected = made(batch, PROGRESS)
    for key, value in made(cached, PROGRESS).items():
        torch.testing.assert_close(value, expected[key], rtol=CLOSE, atol=CLOSE)


# Invariances, of the functions themselves.


def sets(seed: int, m: int, n: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of two sets in any order with some of neither between them, and which they are of."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(m + n + 3, width, generator=draw, dtype=torch.float64)
    kinds = torch.tensor([0] * m + [1] * n + [2] * 3)[torch.randperm(m + n + 3, generator=draw)]
    rows[kinds == 1] = 2 * rows[kinds == 1] + 1
    rows[kinds == 2] *= 50
    return rows, (kinds == 0).double(), (kinds == 1).double()


def multi_kernel(rows: Tensor, source: Tensor, target: Tensor) -> float:
    distances = squared_distances(rows)
    kernel = gaussians(distances, bandwidth(distances, source + target), 5)
    return float(mean_discrepancy(kernel, source, target))


@settings(max_examples=25, deadline=None)
@for_all(seeds, st.integers(2, 7), st.integers(2, 7), st.integers(1, 6))
def test_rows_of_padding_change_nothing(seed: int, m: int, n: int, width: int) -> None:
    rows, source, target = sets(seed, m, n, width)
    real = source + target > 0
    alone = [t[real] for t in (rows, source, target)]
    # Distances to rows far off are in no sum; those that are get rounded around another centre.
    assert multi_kernel(rows, source, target) == pytest.approx(multi_kernel(*alone), abs=CLOSE)
    zeroed = rows * real[:, None]
    found = covariance_distance(zeroed, source, zeroed, target)
    expected = covariance_distance(
        rows[source > 0], source[source > 0], *[t[target > 0] for t in (rows, target)]
    )
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    found = class_confusion(zeroed, target, 2.5)
    expected = class_confusion(rows[target > 0], target[target > 0], 2.5)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)


@settings(max_examples=25, deadline=None)
@for_all(seeds, st.integers(2, 9), st.integers(1, 6))
def test_the_discrepancy_of_equal_sets_is_that_of_its_diagonal(
    seed: int, n: int, width: int
) -> None:
    """2/n (mean kernel of two different rows - that of a row and itself): below 0, towards 0."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=draw, dtype=torch.float64)
    ones, zeros = torch.ones(n).double(), torch.zeros(n).double()
    distances = squared_distances(torch.cat([x, x]))
    kernel = gaussians(distances, torch.tensor(1.3).double(), 5)
    found = mean_discrepancy(kernel, torch.cat([ones, zeros]), torch.cat([zeros, ones]))
    of_others = (kernel[:n, :n].sum() - 5 * n) / (n * (n - 1))
    torch.testing.assert_close(found, 2 / n * (of_others - 5), rtol=CLOSE, atol=CLOSE)


@settings(max_examples=25, deadline=None)
@for_all(seeds, st.integers(2, 7), st.integers(2, 7), st.integers(1, 6))
def test_the_discrepancy_knows_no_place_no_scale_and_no_order_of_domains(
    seed: int, m: int, n: int, width: int
) -> None:
    rows, source, target = sets(seed, m, n, width)
    expected = pytest.approx(multi_kernel(rows, source, target), abs=CLOSE)
    assert multi_kernel(7 * rows + 3, source, target) == expected
    assert multi_kernel(rows, target, source) == expected


@settings(max_examples=25, deadline=None)
@for_all(seeds, st.integers(2, 9), st.integers(1, 6))
def test_coral_is_0_where_covariances_are_equal(seed: int, n: int, width: int) -> None:
    """Of a set and its mirror image somewhere else."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=draw, dtype=torch.float64)
    ones = torch.ones(n)
    assert covariance_distance(x, ones, 5 - x, ones) == pytest.approx(0, abs=1e-20)
    assert covariance_distance(x, ones, 2 * x, ones) > 0
    expected = np.cov(x.numpy(), rowvar=False).reshape(width, width)
    torch.testing.assert_close(covariance(x, ones), torch.from_numpy(expected))


@settings(max_examples=25, deadline=None)
@for_all(seeds, st.integers(1, 9), st.integers(2, 6))
def test_confusion_is_from_0_for_certain_images_to_that_of_uniform_ones(
    seed: int, n: int, classes: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=draw, dtype=torch.float64)
    ones = torch.ones(n)
    found = class_confusion(logits, ones, 2.5)
    assert found == pytest.approx(confusion(logits.numpy(), 2.5), rel=CLOSE)
    certain = 1000 * torch.eye(classes, dtype=torch.float64)
    assert class_confusion(certain, torch.ones(classes), 2.5) == pytest.approx(0, abs=1e-12)
    uniform = class_confusion(0 * logits, ones, 2.5)
    assert uniform == pytest.approx(1 - 1 / classes, rel=CLOSE)
    assert 0 < found < 1


@pytest.mark.parametrize("m", [0, 1, 2])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_without_two_images_of_each_domain_there_is_no_term_and_no_nan(m: int, n: int) -> None:
    rows, source, target = sets(3, m, n, 4)
    rows = (rows * (source + target)[:, None]).requires_grad_()
    distances = squared_distances(rows)
    kernel = gaussians(distances, bandwidth(distances, source + target), 5)
    found = [
        mean_discrepancy(kernel, source, target),
        covariance_distance(rows, source, rows, target),
    ]
    for value in found:
        [slope] = torch.autograd.grad(value, rows, retain_graph=True)
        assert slope.isfinite().all()
        assert m == n == 2 or (value == 0 and not slope.any())
    value = class_confusion(rows, target, 2.5)
    [slope] = torch.autograd.grad(value, rows)
    assert slope.isfinite().all()
    assert (value > 0) == (n > 0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_rows_that_are_all_alike_are_no_harm(value: float) -> None:
    rows = torch.full((6, 4), value).double().requires_grad_()
    source = torch.tensor([1.0, 1, 1, 0, 0, 0]).double()
    distances = squared_distances(rows)
    kernel = gaussians(distances, bandwidth(distances, torch.ones(6).double()), 5)
    found = mean_discrepancy(kernel, source, 1 - source)
    assert abs(found.item()) < CLOSE
    [slope] = torch.autograd.grad(found, rows)
    assert slope.abs().max() < 1


# Gradients.


def test_gradients_are_those_of_finite_differences() -> None:
    rows, source, target = sets(4, 4, 3, 3)
    rows = (rows * (source + target)[:, None] / 2).requires_grad_()
    width = torch.tensor(3.0).double()

    def discrepancy(x: Tensor) -> Tensor:
        return mean_discrepancy(gaussians(squared_distances(x), width, 5), source, target)

    assert torch.autograd.gradcheck(discrepancy, rows)
    assert torch.autograd.gradcheck(lambda x: covariance_distance(x, source, x, target), rows)


def test_the_width_of_kernels_and_the_weights_of_images_are_constants_to_the_gradient() -> None:
    rows, source, target = sets(4, 4, 3, 3)
    real = rows[source + target > 0].requires_grad_()
    source, target = (t[source + target > 0] for t in (source, target))
    distances = squared_distances(real)
    width = bandwidth(distances, source + target)
    assert not width.requires_grad
    p = (real / 2.5).softmax(1)
    certainty = 1 + (p * p.log()).sum(1).exp()

    def confused(x: Tensor) -> Tensor:
        y = (x / 2.5).softmax(1)
        a = torch.einsum("n,ni,nj->ij", target * certainty.detach(), y, y)
        return 1 - (a / a.sum(1, keepdim=True)).trace() / 3

    [found] = torch.autograd.grad(class_confusion(real, target, 2.5), real)
    assert torch.autograd.gradcheck(confused, real)
    [expected] = torch.autograd.grad(confused(real), real)
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    assert found.abs().max() > 1e-3
