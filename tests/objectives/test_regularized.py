"""Each penalty of regularized fine-tuning is its paper's formula, computed here in another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from objective_toys import OPTIONS, given, objective, rows, toy, whole_batch
from torch import Tensor

from tl.config import Phase
from tl.errors import UserError
from tl.freezing import freeze, trainable_names
from tl.objectives import OBJECTIVES, Objective, check_options, make_objective, why_images
from tl.objectives.bss import smallest

# Float64 sums in another order.
CLOSE = 1e-11
N = 7


def outputs(made: Objective) -> tuple[dict[str, Any], dict[str, Tensor]]:
    batch = rows(whole_batch(N), range(N))
    return batch, made(batch, 0.5)


def penalty(name: str, **keys: Any) -> tuple[Objective, dict[str, Any], Tensor]:
    """Of a batch: its part of the loss, which is what is logged of it."""
    made, plain = objective(name, **keys), objective("supervised", **keys)
    batch, output = outputs(made)
    found = output["loss"] - outputs(plain)[1]["loss"]
    torch.testing.assert_close(output[name] / N, found.detach(), rtol=1e-9, atol=1e-12)
    return made, batch, found


def maps(network: Any, x: Tensor, upto: int) -> Tensor:
    """The output of the first so many modules of the toy."""
    return network.model[:upto](x)


def test_l2_sp_is_the_squared_distance_to_the_pretrained_weights_and_of_the_head_to_zero() -> None:
    made, _, found = penalty("l2_sp")
    now, start = (dict(n.model.named_parameters()) for n in (made.network, given().pretrained))
    expected = 0.0
    for name, value in now.items():
        moved = value.detach().numpy()
        if name.startswith("7."):
            expected += 0.3 / 2 * np.sum(moved**2)
        else:
            expected += 0.7 / 2 * np.sum((moved - start[name].detach().numpy()) ** 2)
    assert found.item() == pytest.approx(expected, rel=CLOSE)
    assert expected > 0.1


def test_l2_sp_pulls_only_what_trains() -> None:
    network = toy(0)
    freeze(network, trainable_names(network, "head"))
    phase = Phase(name="p", train="head", objective="l2_sp", objective_options=OPTIONS["l2_sp"])
    made = make_objective(network, phase, given())
    expected = 0.3 / 2 * sum(p.square().sum().item() for p in network.model[7].parameters())
    assert outputs(made)[1]["l2_sp"].item() / N == pytest.approx(expected, rel=CLOSE)


def test_delta_is_the_squared_distance_of_feature_maps_over_their_places() -> None:
    made, batch, found = penalty("delta")
    expected = 0.0
    for upto, places in ((2, 36), (6, 1)):
        now = maps(made.network, batch["image"], upto).detach().numpy()
        before = maps(given().pretrained, batch["image"], upto).numpy()
        for image in range(N):
            for channel in range(now.shape[1]):
                moved = now[image, channel] - before[image, channel]
                expected += 0.7 / 2 * np.sum(moved**2) / places / N
    head = made.network.model[7]
    expected += 0.3 / 2 * sum(np.sum(p.detach().numpy() ** 2) for p in head.parameters())
    assert found.item() == pytest.approx(expected, rel=CLOSE)


def test_delta_looks_at_all_stages_but_the_first_and_the_head_by_default() -> None:
    phase = Phase(name="p", train="full", objective="delta")
    assert make_objective(toy(0), phase, given()).keep == ("body",)  # type: ignore[attr-defined]


def test_bss_is_the_sum_of_the_smallest_squared_singular_values() -> None:
    made, batch, found = penalty("bss")
    features = maps(made.network, batch["image"], 6).detach().numpy()
    values = np.sort(np.linalg.svd(features, compute_uv=False))
    assert found.item() == pytest.approx(0.5 * np.sum(values[:2] ** 2), rel=1e-8)


@settings(max_examples=40, deadline=None)
@for_all(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4), st.integers(1, 8))
def test_rows_of_padding_change_no_singular_value(
    count: int, width: int, padding: int, k: int
) -> None:
    draw = torch.Generator().manual_seed(count * 100 + width)
    matrix = torch.randn(count, width, generator=draw, dtype=torch.float64)
    order = torch.randperm(count + padding, generator=draw)
    padded = torch.cat([matrix, torch.zeros(padding, width).double()])[order]
    found = smallest(padded, torch.tensor(float(count)), k)
    values = np.sort(np.linalg.svd(matrix.numpy(), compute_uv=False))
    assert found.item() == pytest.approx(np.sum(values[:k] ** 2), rel=1e-9, abs=1e-20)


def test_the_gradient_of_singular_values_is_that_of_finite_differences() -> None:
    matrix = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: smallest(m, torch.tensor(5.0), 2), matrix)


def test_co_tuning_is_the_source_heads_cross_entropy_with_the_relationship() -> None:
    made, batch, found = penalty("co_tuning")
    head, relationship = toy(2, 5).model[7], given().relationship
    assert relationship is not None
    logits = head(maps(made.network, batch["image"], 6)).detach().numpy()
    expected = 0.0
    for image, label in enumerate(batch["label"].tolist()):
        chances = np.exp(logits[image]) / np.exp(logits[image]).sum()
        expected -= 1.7 * np.sum(relationship[label].double().numpy() * np.log(chances)) / N
    assert found.item() == pytest.approx(expected, rel=CLOSE)


def test_lwf_is_the_softened_cross_entropy_with_the_pretrained_networks_answers() -> None:
    made, batch, found = penalty("lwf")
    head = toy(2, 5).model[7]
    now, before = (
        head(maps(network, batch["image"], 6)).detach().numpy() / 3
        for network in (made.network, given().pretrained)
    )
    soft, log = np.exp(before), now - np.log(np.exp(now).sum(1, keepdims=True))
    soft /= soft.sum(1, keepdims=True)
    assert found.item() == pytest.approx(-0.6 * np.sum(soft * log) / N, rel=CLOSE)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    made = objective(name)
    batch = rows(whole_batch(4), range(4))
    values = [p for p in made.parameters() if p.requires_grad]
    made(batch, 0.5)["loss"].backward()
    for value in values:
        flat, slope = value.detach().view(-1), value.grad
        assert slope is not None
        for place in range(0, len(flat), 7):
            ends = []
            for step in (1e-6, -1e-6):
                flat[place] += step
                ends.append(made(batch, 0.5)["loss"].item())
                flat[place] -= step
            # Central differences: the error is of the order of the step squared, and rounding.
            slope_here = (ends[0] - ends[1]) / 2e-6
            assert slope.view(-1)[place].item() == pytest.approx(slope_here, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_pretrained_network_is_neither_trained_nor_checkpointed_nor_set_to_train(
    name: str,
) -> None:
    made = objective(name).train()
    networks = dict(toy(0).model.named_parameters())
    own = [n for n, _ in made.trained_parameters() if n not in networks]
    heads = ["source_head.model.7.weight", "source_head.model.7.bias"]
    assert own == (heads if "source_head" in OBJECTIVES[name].needs else [])
    assert sorted(made.own_state()) == sorted(own)
    pretrained, head = made.given.pretrained, made.given.source_head
    for module in (pretrained, head):
        assert module is not None
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["co_tuning", "lwf"])
def test_the_source_head_drops_the_features_that_the_new_head_drops(name: str) -> None:
    made = objective(name, dropout=True)
    batch = rows(whole_batch(N), range(N))
    made.network.expect(batch)
    ones = torch.ones(N, 5, dtype=torch.float64)
    theirs = made.source_head.model.get_submodule("6")(ones)  # type: ignore[union-attr,operator]
    assert torch.equal(theirs, made.network.model[6](ones))  # type: ignore[index]
    assert not theirs.all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("l2_sp", {"alhpa": 1}, r"unknown key 'phases\.0\.objective_options\.alhpa'\. "
         r"Did you mean 'objective_options\.alpha'\?"),
        ("l2_sp", {"alpha": -1}, r"phases\.0\.objective_options\.alpha: .*greater than or equal"),
        ("bss", {"k": 0}, r"phases\.0\.objective_options\.k: must be greater than 0"),
        ("lwf", {"temperature": "hot"}, r".*\.temperature: must be a valid number"),
        ("supervised", {"alpha": 1}, "unknown key"),
    ],
)  # fmt: skip
def test_an_option_that_there_is_not_or_cannot_be_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    phase = Phase(name="p", train="full", objective=name, objective_options=options)
    with pytest.raises(UserError, match=f"objective {name}: {message}"):
        check_options(phase, 0, {})


def test_a_stage_that_there_is_not_is_refused_with_the_nearest() -> None:
    options = {"stages": ["bdy"]}
    phase = Phase(name="p", train="full", objective="delta", objective_options=options)
    with pytest.raises(UserError, match=r"unknown stage 'bdy'.*Did you mean 'body'"):
        make_objective(toy(0), phase, given())


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({}, ""),
        ({"objective": "l2_sp"}, ""),
        ({"objective": "bss"}, ""),
        ({"objective": "co_tuning"}, ""),
        ({"objective": "lwf"}, "objective=lwf sends images"),
        ({"objective": "delta"}, "objective=delta sends images"),
        ({"mixup": 0.1}, "mixup mixes images"),
        ({"cutmix": 0.1}, "cutmix mixes images"),
    ],
)
def test_what_looks_at_images_is_given_no_cached_features(keys: dict[str, Any], why: str) -> None:
    found = why_images(Phase(name="p", train="head", **keys))
    assert found.startswith(why)
    assert bool(found) == bool(why)
