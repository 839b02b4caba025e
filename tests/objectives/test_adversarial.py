"""Each adversarial loss is its paper's formula, and reaches the features with its sign reversed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from adaptation_toys import adaptation, rows_of_all, two_domains
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from objective_toys import C, toy
from torch import Tensor, nn

from tl.config import OptimizerConfig, Phase
from tl.errors import UserError
from tl.freezing import freeze, trainable_names
from tl.models import bottleneck, zoo
from tl.models.pooled import pool
from tl.objectives import Objective, check_options
from tl.objectives.adaptation import feature_width
from tl.objectives.bsp import largest
from tl.objectives.cdan import CDAN, ConditionalAdversary, OuterProduct, RandomProduct
from tl.objectives.domain_classifier import DomainClassifier
from tl.objectives.mdd import minus_log_of_others
from tl.objectives.reversal import reversal_strength, reverse
from tl.optim import parameter_groups

# Float64 sums in another order.
CLOSE = 1e-11
N, PROGRESS = 6, 0.13

OPTIONS: dict[str, dict[str, Any]] = {
    "dann": {"width": 7, "strength": 0.6},
    "cdan": {"width": 7, "alpha": 3.0},
    "cdan+e": {"width": 7, "entropy": True},
    "cdan randomised": {"width": 7, "randomized": True, "randomized_width": 9},
    "mdd": {"width": 7, "gamma": 2.5, "alpha": 20.0},
    "bsp of cdan": {"width": 7, "beta": 0.3, "k": 2},
    "bsp of dann": {"width": 7, "beta": 0.3, "adversary": "dann"},
}


def made_of(case: str, **keys: Any) -> Objective:
    return adaptation(case.replace("+", " ").split()[0], OPTIONS[case], **keys)


def example(n: int = N) -> dict[str, Any]:
    return rows_of_all(two_domains(n), range(n))


# The same, image by image, with explicit sums and without reversal, for autograd to differentiate.


def seen(made: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
    model: Any = made.network.model
    features = model[:6](images)
    return features, features @ model[7].weight.T + model[7].bias


def mlp(layers: Any, x: Tensor) -> Tensor:
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linear):
        x = layer.weight @ x + layer.bias
        x = x * (x > 0) if i < len(linear) - 1 else x
    return x


def probabilities(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum()


def domains_told_apart(made: Any, batch: dict[str, Any], conditional: bool) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for images, is_source in ((batch["image"], True), (batch["target"]["image"], False)):
        terms, weights = [], []
        for f, logits in zip(*seen(made, images), strict=True):
            x, g = f, probabilities(logits.detach())
            if conditional and isinstance(made.adversary.product, RandomProduct):
                product = made.adversary.product
                x = sum(f[i] * product.of_features[i] for i in range(len(f)))
                x = x * sum(g[i] * product.of_classes[i] for i in range(C)) / 3.0  # sqrt(9)
            elif conditional:
                x = torch.stack([a * b for a in f for b in g])
            d = 1 / (1 + (-mlp(made.adversary.classifier, x)[0]).exp())
            terms.append(-(d if is_source else 1 - d).log())
            entropy = -sum(p * math.log(p) for p in g.tolist())
            weights.append(1 + math.exp(-entropy))
        if not (conditional and made.adversary.entropy):
            weights = [1.0] * len(weights)
        total = total + sum(w * t for w, t in zip(weights, terms, strict=True)) / sum(weights) / 2
    return total


def margin_disparity(made: Any, batch: dict[str, Any]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for images, is_source in ((batch["image"], True), (batch["target"]["image"], False)):
        for f, logits in zip(*seen(made, images), strict=True):
            p = probabilities(mlp(made.adversary, f))[int(logits.argmax())]
            total = total + (-2.5 * p.log() if is_source else -(1 - p).log()) / N
    return total


def spectra(made: Any, batch: dict[str, Any], k: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for images in (batch["image"], batch["target"]["image"]):
        f, _ = seen(made, images)
        total = total + torch.linalg.eigvalsh(f.T @ f)[-k:].sum()
    return total


ADVERSARIAL: dict[str, Callable[..., Tensor]] = {
    "dann": lambda made, batch: domains_told_apart(made, batch, conditional=False),
    "cdan": lambda made, batch: domains_told_apart(made, batch, conditional=True),
    "cdan+e": lambda made, batch: domains_told_apart(made, batch, conditional=True),
    "cdan randomised": lambda made, batch: domains_told_apart(made, batch, conditional=True),
    "mdd": margin_disparity,
    "bsp of cdan": lambda made, batch: domains_told_apart(made, batch, conditional=True),
    "bsp of dann": lambda made, batch: domains_told_apart(made, batch, conditional=False),
}
STRENGTH = {
    "dann": 0.6 * math.tanh(5 * PROGRESS),
    "cdan": math.tanh(1.5 * PROGRESS),
    "mdd": 0.1 * math.tanh(10 * PROGRESS),
}
"""2 / (1 + exp(-a p)) - 1 is tanh(a p / 2); that of the others is of the default, tanh(5 p)"""


def gradients_of(value: Tensor, made: Objective) -> dict[str, Tensor]:
    names, parameters = zip(*made.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for name, p, g in zip(names, parameters, found, strict=True)
    }


@pytest.mark.parametrize("case", OPTIONS)
def test_loss_and_gradient_are_those_of_the_formula_reversed_before_the_head(case: str) -> None:
    made, batch = made_of(case), example()
    output = made(batch, PROGRESS)
    cross_entropy = torch.nn.functional.cross_entropy(seen(made, batch["image"])[1], batch["label"])
    adversarial = ADVERSARIAL[case](made, batch)
    plain = cross_entropy
    if case.startswith("bsp"):
        penalty = 0.3 * spectra(made, batch, 2 if case == "bsp of cdan" else 1)
        assert output["bsp"].item() / N == pytest.approx(penalty.item(), rel=CLOSE)
        plain = plain + penalty
    name = case.replace("bsp of ", "").replace("+", " ").split()[0]
    assert output[name].item() / N == pytest.approx(adversarial.item(), rel=CLOSE)
    assert output["loss"].item() == pytest.approx((plain + adversarial).item(), rel=CLOSE)

    found, of_plain = gradients_of(output["loss"], made), gradients_of(plain, made)
    strength = STRENGTH.get(case, math.tanh(5 * PROGRESS))
    for parameter, slope in gradients_of(adversarial, made).items():
        if parameter.startswith("network."):
            slope = -strength * slope
        else:
            assert slope.abs().max() > 1e-4, f"{parameter} does not matter here"
        expected = of_plain[parameter] + slope
        # The gradient of the eigenvalues takes the square of what the singular values take.
        torch.testing.assert_close(found[parameter], expected, rtol=1e-9, atol=1e-12)


@for_all(st.floats(0, 1), st.floats(0, 200), st.floats(0, 2), st.floats(0, 2))
def test_the_strength_is_a_hyperbolic_tangent_of_progress(
    progress: float, alpha: float, low: float, high: float
) -> None:
    expected = low + (high - low) * math.tanh(alpha * progress / 2)
    assert reversal_strength(progress, alpha, low, high) == pytest.approx(expected, abs=1e-14)
    assert reversal_strength(0.0, alpha, low, high) == low


def test_reversal_changes_nothing_and_turns_the_gradient_around() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = reverse(x, 0.3)
    assert torch.equal(y, x)
    [slope] = torch.autograd.grad((y**2).sum(), x)
    torch.testing.assert_close(slope, -0.3 * 2 * x)
    # Reversed twice it is the gradient again, for finite differences to check; so is its own.
    twice = lambda x: reverse(reverse(x, 0.25), 4.0).tanh()  # noqa: E731
    assert torch.autograd.gradcheck(twice, x)
    assert torch.autograd.gradgradcheck(twice, x)


def test_the_accuracy_is_the_mean_over_both_domains_of_how_often_the_discriminator_is_right() -> (
    None
):
    made: Any = made_of("dann")
    batch = example(5)
    # Of the target one image less than of the source, and padding that would be right.
    batch["target"]["weight"][2] = 0
    batch["target"]["global_count"] = 4
    output = made(batch, PROGRESS)
    right = []
    for part, sign in ((batch, 1), (batch["target"], -1)):
        scores = [mlp(made.adversary.classifier, f)[0].item() for f in seen(made, part["image"])[0]]
        right.append(
            np.average([np.sign(s) == sign for s in scores], weights=part["weight"].numpy())
        )
    assert output["domain_accuracy"].item() / 5 == pytest.approx(np.mean(right), rel=CLOSE)
    made.adversary.classifier[4].bias.data.fill_(1e3)  # all are of the source, it says
    assert made(batch, PROGRESS)["domain_accuracy"].item() / 5 == pytest.approx(0.5, rel=CLOSE)


def test_the_discriminator_learns_to_tell_domains_that_features_do_not_hide() -> None:
    made: Any = made_of("dann")
    batch = example(12)
    adam = torch.optim.Adam(made.adversary.parameters(), lr=0.02)  # the features stay
    accuracies = []
    for _ in range(60):
        adam.zero_grad()
        output = made(batch, PROGRESS)
        output["loss"].backward()
        adam.step()
        accuracies.append(output["domain_accuracy"].item() / 12)
    assert accuracies[0] < 0.8
    assert accuracies[-1] > 0.95


@pytest.mark.parametrize(("classes", "wide"), [(819, False), (820, True)])
def test_the_outer_product_is_randomised_above_4096_values(classes: int, wide: bool) -> None:
    network = toy(0, classes)  # 5 features: 4095 and 4100 values
    phase = Phase(name="p", train="full")
    made = ConditionalAdversary(network, phase, CDAN.Options(width=3))
    assert isinstance(made.product, RandomProduct if wide else OuterProduct)
    assert made.product.width == (1024 if wide else 4095)
    told = ConditionalAdversary(network, phase, CDAN.Options(width=3, randomized=not wide))
    assert isinstance(told.product, OuterProduct if wide else RandomProduct)


def test_inner_products_of_the_randomised_form_are_those_of_the_outer_product() -> None:
    torch.manual_seed(3)
    f, g = torch.randn(4, 6), torch.randn(4, 5).softmax(1)
    width = 1 << 17
    x = RandomProduct(6, 5, width)(f, g)
    expected = (f @ f.T) * (g @ g.T)
    # A mean of `width` products, each with a standard deviation of at most 3 times the norms'.
    norms = (f.norm(dim=1)[:, None] * f.norm(dim=1)) * (g.norm(dim=1)[:, None] * g.norm(dim=1))
    assert ((x @ x.T - expected).abs() <= 5 * 3 * norms / math.sqrt(width)).all()


def test_random_matrices_follow_from_the_seed_and_are_in_no_checkpoint() -> None:
    made = []
    for drawn in (0, 5):
        torch.manual_seed(11)
        torch.randn(drawn)
        made.append(RandomProduct(6, 5, 8))
    torch.manual_seed(12)
    other = RandomProduct(6, 5, 8)
    for name in ("of_features", "of_classes"):
        first, second = (getattr(m, name) for m in made)
        assert torch.equal(first, second)
        assert not torch.equal(first, getattr(other, name))
        assert set(first.unique().tolist()) == {-1.0, 1.0}
    state = made_of("cdan randomised").own_state()
    assert state
    assert all(name.startswith("adversary.classifier.") for name in state)


@pytest.mark.parametrize("case", OPTIONS)
def test_what_it_trains_is_restored_from_a_checkpoint_bit_for_bit(case: str) -> None:
    first, second, batch = made_of(case), made_of(case), example()
    for parameter in first.adversary.parameters():  # type: ignore[union-attr]
        parameter.data += torch.randn_like(parameter)
    second.load_own_state(copy.deepcopy(first.own_state()))
    for name, value in first(batch, PROGRESS).items():
        assert torch.equal(value, second(batch, PROGRESS)[name]), name


@pytest.mark.parametrize("case", OPTIONS)
def test_its_own_parameters_train_at_the_heads_rate(case: str) -> None:
    made = made_of(case)
    config = OptimizerConfig(lr=0.5, layer_decay=0.1, head_factor=3.0)
    groups = parameter_groups(made.trained_parameters(), config, made.network.depth_of)
    rate = {name: group["base_lr"] for group in groups for name in group["names"]}
    own = {name for name in rate if name.startswith("adversary.")}
    assert own == {n for n, _ in made.named_parameters() if n.startswith("adversary.")}
    assert {rate[name] for name in own} == {rate["7.weight"]} == {1.5}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_under_half_precision_what_is_added_is_computed_in_float32(
    case: str, half: torch.dtype
) -> None:
    made, batch = made_of(case).float(), example()
    for part in (batch, batch["target"]):
        part["image"] = part["image"].float()
    whole = made(batch, PROGRESS)
    with torch.autocast("cpu", half):
        output = made(batch, PROGRESS)
    output["loss"].backward()
    for name, value in output.items():
        if name not in ("accuracy", "domain_accuracy"):
            assert value.dtype == torch.float32, name
            # Features have 8 bits in bfloat16; what is made of them would have, too.
            assert value.item() == pytest.approx(whole[name].item(), rel=0.03)
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("start", [1, 2])
def test_cached_features_of_the_frozen_prefix_give_the_same(case: str, start: int) -> None:
    made, batch = made_of(case), example()
    freeze(made.network, trainable_names(made.network, f"last_stages({3 - start})"))
    assert made.network.frozen_prefix == start
    cached = dict(batch, start=start, target=dict(batch["target"], start=start))
    for part in (cached, cached["target"]):
        part["image"] = made.network.features(part["image"], start)
    from_images, from_features = made(batch, PROGRESS), made(cached, PROGRESS)
    for name, value in from_images.items():
        torch.testing.assert_close(from_features[name], value, rtol=CLOSE, atol=CLOSE)
    trained = [p for _, p in made.trained_parameters()]
    slopes = [torch.autograd.grad(o["loss"], trained) for o in (from_images, from_features)]
    for first, second in zip(*slopes, strict=True):
        torch.testing.assert_close(first, second, rtol=CLOSE, atol=CLOSE)


def test_the_discriminator_is_the_same_for_an_image_whichever_are_beside_it() -> None:
    classifier = DomainClassifier(5, 8).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    alone = torch.cat([classifier(row[None]) for row in x])
    torch.testing.assert_close(classifier(x), alone, rtol=CLOSE, atol=CLOSE)


@settings(max_examples=40, deadline=None)
@for_all(st.integers(2, 6), st.floats(0, 2000), st.integers(0, 99))
def test_the_log_of_the_other_classes_probability_is_exact_and_finite_where_that_is_0(
    classes: int, certain: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, generator=draw, dtype=torch.float64)
    chosen = torch.randint(0, classes, (3,), generator=draw)
    logits[0, chosen[0]] += certain
    logits.requires_grad_()
    values = minus_log_of_others(logits, chosen)
    for row, label, value in zip(logits.detach().numpy(), chosen.tolist(), values, strict=True):
        others = np.delete(row, label)
        # log(sum of all / sum of the others) = log(1 + exp(chosen - log-sum-exp of the others))
        expected = np.logaddexp(0, row[label] - np.log(np.exp(others).sum()))
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    values.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda z: minus_log_of_others(z, chosen[1:]), logits.detach()[1:].requires_grad_()
    )


@settings(max_examples=40, deadline=None)
@for_all(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4), st.integers(1, 8))
def test_rows_of_padding_change_no_singular_value(
    count: int, width: int, padding: int, k: int
) -> None:
    draw = torch.Generator().manual_seed(count * 100 + width)
    matrix = torch.randn(count, width, generator=draw, dtype=torch.float64)
    order = torch.randperm(count + padding, generator=draw)
    padded = torch.cat([matrix, torch.zeros(padding, width).double()])[order]
    values = np.sort(np.linalg.svd(matrix.numpy(), compute_uv=False))[::-1]
    assert largest(padded, k).item() == pytest.approx(np.sum(values[:k] ** 2), rel=1e-9)
    assert torch.autograd.gradcheck(lambda m: largest(m, k), padded.requires_grad_())


@pytest.mark.parametrize(("bottleneck_width", "width"), [(None, 512), (48, 48)])
def test_the_width_of_features_is_found_before_any_image_and_wakes_no_frozen_part(
    bottleneck_width: int | None, width: int
) -> None:
    network = zoo.build("resnet18", 3)
    if bottleneck_width:
        bottleneck.put(network, bottleneck_width)
    freeze(network, trainable_names(network, "last_stages(2)"))
    network.train()
    modes = {name: module.training for name, module in network.named_modules()}
    before, draws = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert feature_width(network) == width
    assert torch.equal(torch.get_rng_state(), draws)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    images = torch.zeros(1, 3, 64, 64)
    assert pool(network.eval().features(images, len(network.stages) - 1)).shape == (1, width)


def test_an_option_that_there_is_not_is_an_error_with_the_nearest() -> None:
    for name in ("dann", "cdan", "mdd", "bsp"):
        phase = Phase(name="p", train="full", objective=name, objective_options={"widht": 3})
        with pytest.raises(UserError, match=r"widht.*width"):
            check_options(phase, 0, {})
