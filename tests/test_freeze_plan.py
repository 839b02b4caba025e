"""Promise 1, frozen means frozen: the plan that is shown, and the proof."""

from __future__ import annotations

import re

import pytest
import torch
from freezing_toys import REAL, all_names, frozen, on_meta
from torch.nn.modules.batchnorm import _BatchNorm

from tl.freeze_plan import (
    assert_unchanged,
    freeze_plan,
    frozen_digests,
    frozen_tensors,
    random_and_frozen,
)
from tl.freezing import trainable_names


def test_digests_cover_frozen_parameters_and_statistics_and_nothing_that_trains() -> None:
    network = frozen("last_stages(3)")
    one = {f"one.{name}" for name in network.model.one.state_dict()}
    assert set(frozen_digests(network)) == one
    assert set(frozen_digests(frozen("full"))) == set()
    running = {f"{b}.bn.{s}" for b in ("one", "two") for s in network.model.one.bn._buffers}
    assert set(frozen_digests(frozen("full", "frozen"))) == running


@pytest.mark.parametrize(
    "name", ["one.conv.weight", "one.bn.bias", "one.bn.running_var", "one.bn.num_batches_tracked"]
)
def test_a_single_bit_that_changes_is_found(name: str) -> None:
    network = frozen("last_stages(3)")
    before = frozen_digests(network)
    assert_unchanged(before, frozen_digests(network), "p")
    bits = frozen_tensors(network)[name].detach().view(-1).view(torch.uint8)
    bits[0] ^= 1
    with pytest.raises(RuntimeError, match=f"phase p: frozen tensors changed: {name}\\."):
        assert_unchanged(before, frozen_digests(network), "p")
    bits[0] ^= 1
    assert_unchanged(before, frozen_digests(network), "p")


def test_minus_zero_and_nan_have_digests_of_their_own() -> None:
    network = frozen("last_stages(3)")
    bias = network.model.one.bn.bias
    seen = set()
    for value in (0.0, -0.0, float("nan")):
        with torch.no_grad():
            bias.fill_(value)
        seen.add(frozen_digests(network)["one.bn.bias"])
    assert len(seen) == 3


def test_a_digest_is_of_the_values_and_not_of_their_place_in_memory() -> None:
    network = frozen("last_stages(3)")
    before = frozen_digests(network)
    network.to(memory_format=torch.channels_last)
    assert frozen_digests(network) == before
    assert frozen_digests(network.to(torch.bfloat16)) != before


def test_many_changes_are_counted() -> None:
    before = {f"t{i}": "a" for i in range(9)}
    with pytest.raises(RuntimeError, match=r"t0, t1, t2, t3, t4 and 4 more"):
        assert_unchanged(before, {}, "p")


# ----------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize("architecture", REAL)
@pytest.mark.parametrize("train", ["full", "head", "last_stages(2)", "norm", "bias"])
def test_the_plans_numbers_add_up(architecture: str, train: str) -> None:
    network = frozen(train, make=lambda: on_meta(architecture))
    names = trainable_names(network, train)
    plan = freeze_plan(network, dict.fromkeys(names, 0.01))
    sizes = {name: p.numel() for name, p in network.model.named_parameters()}
    assert [row.stage for row in plan] == [stage.name for stage in network.stages]
    assert sum(row.parameters for row in plan) == sum(sizes.values())
    assert sum(row.trainable for row in plan) == sum(sizes[name] for name in names)
    assert all(row.parameters == row.trainable + row.frozen for row in plan)
    assert all((row.lr == "-") == (row.trainable == 0) for row in plan)
    for row, stage in zip(plan, network.stages, strict=True):
        norms = [
            module
            for name, module in network.model.named_modules()
            if isinstance(module, _BatchNorm) and stage.owns_name(name)
        ]
        assert (row.batch_norm == "-") == (not norms)


def test_the_plan_says_what_batchnorm_does_and_the_range_of_rates() -> None:
    network = frozen(r"regex(one\.bn|layer|fc|two\.conv)")
    rates = {"one.bn.weight": 0.1, "one.bn.bias": 0.001, "two.conv.weight": 0.01}
    rates |= {"two.conv.bias": 0.01, "fc.weight": 0.2, "fc.bias": 0.2}
    plan = freeze_plan(network, rates)
    assert [row.batch_norm for row in plan] == ["train", "frozen", "-", "-"]
    assert [row.lr for row in plan] == ["1.00e-03 to 1.00e-01", "1.00e-02", "-", "2.00e-01"]


def test_a_stage_with_both_kinds_of_batchnorm_shows_both() -> None:
    network = frozen(r"regex(layer4\.1)", make=lambda: on_meta("resnet18"))
    plan = {row.stage: row for row in freeze_plan(network, dict.fromkeys(all_names(network), 0.1))}
    assert (plan["layer4"].batch_norm, plan["layer3"].batch_norm) == ("frozen, train", "frozen")


def test_random_weights_that_never_train_are_noted() -> None:
    network = frozen("regex(two)")
    new = ["fc.weight", "fc.bias"]
    expected = ["new, random and frozen: fc.bias, fc.weight"]
    assert random_and_frozen(network, new, pretrained=True) == expected
    assert random_and_frozen(frozen("head"), new, pretrained=True) == []
    (note,) = random_and_frozen(frozen("head"), all_names(network), pretrained=False)
    assert "the weights are random" in note
    assert random_and_frozen(frozen("full"), all_names(network), pretrained=False) == []
    (_, body) = random_and_frozen(frozen("regex(two)"), all_names(network), pretrained=True)
    assert re.fullmatch(r"\d+ new, random and frozen below the head: in one.*", body)
