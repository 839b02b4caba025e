"""Schedules against torch's own schedulers, and optimizers against torch's own optimizers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from freezing_toys import on_meta
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from tl.arguments import load
from tl.config import OptimizerConfig, ScheduleConfig
from tl.engine import checkpoint
from tl.errors import UserError
from tl.freeze_plan import freeze_plan
from tl.freezing import freeze, trainable_names
from tl.models.network import Network
from tl.optim import lr_factor, make_optimizer, parameter_groups, set_lr

TOTAL, PER_EPOCH = 60, 6
# torch's schedulers multiply the rate of the step before, which adds a rounding for each step.
CLOSE = 1e-12


def factors(total: int = TOTAL, per_epoch: int = PER_EPOCH, **keys: Any) -> list[float]:
    schedule = ScheduleConfig(**keys)
    return [lr_factor(schedule, step, total, per_epoch) for step in range(total)]


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1, dtype=torch.float64))], lr=1.0)


def rates(scheduler: LRScheduler, per: int = 1, total: int = TOTAL) -> list[float]:
    """The rate at each step of a scheduler that is stepped after every ``per`` steps."""
    found = []
    for step in range(total):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        if (step + 1) % per == 0:
            scheduler.step()
    return found


def test_step_is_torchs_step_lr_per_epoch() -> None:
    theirs = rates(StepLR(sgd(), step_size=3, gamma=0.3), per=PER_EPOCH)
    ours = factors(name="step", step_epochs=3, gamma=0.3)
    assert ours == pytest.approx(theirs, rel=CLOSE)
    assert len(set(theirs)) == 4


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_is_torchs_cosine_annealing(final: float) -> None:
    theirs = rates(CosineAnnealingLR(sgd(), T_max=TOTAL, eta_min=final))
    # torch's recursion divides by numbers near 0 at the end and loses digits there.
    assert factors(name="cosine", final=final) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("power", [1.0, 0.9, 2.0])
def test_poly_is_torchs_polynomial(power: float) -> None:
    theirs = rates(PolynomialLR(sgd(), total_iters=TOTAL, power=power))
    assert factors(name="poly", power=power) == pytest.approx(theirs, rel=1e-11)


def test_inverse_is_that_of_domain_adversarial_training() -> None:
    theirs = [1 / (1 + 10 * step / TOTAL) ** 0.75 for step in range(TOTAL)]
    assert factors(name="inverse") == pytest.approx(theirs, rel=CLOSE)


def test_constant_stays() -> None:
    assert set(factors(name="constant")) == {1.0}


@pytest.mark.parametrize("warmup", [{"warmup_steps": 12}, {"warmup_epochs": 2.0}])
def test_warm_up_is_torchs_linear_and_then_the_schedule_over_what_is_left(
    warmup: dict[str, Any],
) -> None:
    optimizer = sgd()
    linear = LinearLR(optimizer, start_factor=1 / 12, total_iters=11)
    cosine = CosineAnnealingLR(optimizer, T_max=TOTAL - 12)
    theirs = rates(SequentialLR(optimizer, [linear, cosine], milestones=[12]))
    ours = factors(name="cosine", **warmup)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_the_longer_of_two_warm_ups_counts() -> None:
    assert factors(warmup_steps=4, warmup_epochs=2.0) == factors(warmup_epochs=2.0)
    assert factors(warmup_steps=14, warmup_epochs=2.0) == factors(warmup_steps=14)


def test_final_is_what_the_rate_falls_towards() -> None:
    for name in ("cosine", "poly"):
        ours = factors(name=name, final=0.25, total=10_000)
        assert ours[0] == 1.0
        assert ours[-1] == pytest.approx(0.25, abs=1e-4)  # a step before the end: 1/10000 left


names = st.sampled_from(["constant", "step", "cosine", "poly", "inverse"])
schedules = st.builds(
    ScheduleConfig, name=names, warmup_steps=st.integers(0, 30), warmup_epochs=st.floats(0, 4),
    step_epochs=st.integers(1, 9), gamma=st.floats(0.01, 1), power=st.floats(0.1, 3),
    final=st.floats(0, 1),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(schedules, st.integers(1, 80), st.integers(1, 12))
def test_a_factor_is_in_0_to_1_rises_in_warm_up_and_never_after(
    schedule: ScheduleConfig, total: int, per_epoch: int
) -> None:
    found = [lr_factor(schedule, step, total, per_epoch) for step in range(total)]
    warmup = max(schedule.warmup_steps, round(schedule.warmup_epochs * per_epoch))
    assert all(0 < factor <= 1 for factor in found)
    rising, falling = found[:warmup], found[warmup:]
    assert rising == sorted(set(rising))
    assert falling == sorted(falling, reverse=True)
    if warmup < total and schedule.name != "step":
        assert falling[0] == 1.0


# -------------------------------------------------------------------------------------- optimizers


def toy(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 25) -> None:
    x = torch.randn(steps, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for batch in x:
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (
            OptimizerConfig(lr=0.01, momentum=0.8, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, weight_decay=0.1),
        ),
        (
            OptimizerConfig(lr=0.01, momentum=0.8, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, nesterov=True),
        ),
        (OptimizerConfig(lr=0.01, momentum=0.0, nesterov=True), lambda p: torch.optim.SGD(p, 0.01)),
        (
            OptimizerConfig(name="adamw", lr=0.01, betas=[0.8, 0.9], weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1),
        ),
        (
            # torch's AdamW decays by default, ours does not
            OptimizerConfig(name="adamw", lr=0.01),
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
        ),
    ],
)
def test_an_optimizer_gives_the_weights_of_torchs_own(config: OptimizerConfig, plain: Any) -> None:
    """A fused kernel rounds in another order: a few ulps (2e-16) over 25 steps."""
    ours, theirs = toy(), toy()
    descend(ours, make_optimizer(parameter_groups(ours.named_parameters(), config), config))
    descend(theirs, plain(theirs.parameters()))
    for name, before in toy().named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name), theirs.get_parameter(name), rtol=1e-12, atol=1e-14
        )
        assert not torch.equal(ours.get_parameter(name), before)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_step_that_is_left_out_moves_nothing_and_leaves_no_trace(
    name: Any, momentum: float, steps_before: int
) -> None:
    config = OptimizerConfig(name=name, lr=0.01, momentum=momentum, weight_decay=0.1)
    ours, reference = toy(), toy()
    optimizers = [
        make_optimizer(parameter_groups(model.named_parameters(), config), config)
        for model in (ours, reference)
    ]
    for model, optimizer in zip((ours, reference), optimizers, strict=True):
        descend(model, optimizer, steps_before)
    for parameter in ours.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizers[0].found_inf = torch.ones(())
    optimizers[0].step()
    optimizers[0].found_inf = torch.zeros(())
    for model, optimizer in zip((ours, reference), optimizers, strict=True):
        descend(model, optimizer, 3)
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_frozen_parameters_never_reach_the_optimizer() -> None:
    model = toy()
    model[0].requires_grad_(False)
    (group,) = parameter_groups(model.named_parameters(), OptimizerConfig())
    assert group["names"] == ["2.weight", "2.bias"]
    assert [id(p) for p in group["params"]] == [id(p) for p in model[2].parameters()]


def test_set_lr_scales_every_groups_own_rate_and_returns_the_highest() -> None:
    model = toy()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.1, "base_lr": 0.1},
            {"params": model[2].parameters(), "lr": 0.4, "base_lr": 0.4},
        ]
    )
    set_lr(optimizer, 0.1)
    assert set_lr(optimizer, 0.5) == 0.2  # of the base, not of the rate before
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.2]


# ------------------------------------------------------------------------ a rate for each group

DEPTHS = {"0.weight": 1, "0.bias": 1, "2.weight": 0, "2.bias": 0}
RATED = OptimizerConfig(lr=0.3, layer_decay=0.4, head_factor=5, weight_decay=0.1)


def rates_of(groups: list[dict[str, Any]], key: str = "lr") -> dict[str, float]:
    return {name: group[key] for group in groups for name in group["names"]}


def named(network: Network) -> list[tuple[str, nn.Parameter]]:
    return list(network.model.named_parameters())


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_0", "vit_b_16", "googlenet"])
@pytest.mark.parametrize("train", ["full", "last_stages(3)", "norm", "bias", "surgical({first})"])
def test_a_rate_is_that_of_its_depth_whatever_else_trains(architecture: str, train: str) -> None:
    """The closed form: lr * layer_decay ** depth, and lr * head_factor for the head."""
    network = on_meta(architecture)
    freeze(network, trainable_names(network, train.format(first=network.stages[0].name)))
    found = rates_of(parameter_groups(named(network), RATED, network.depth_of))
    names = [stage.name for stage in network.stages]
    expected = {}
    for name, parameter in named(network):
        if parameter.requires_grad:
            depth = len(names) - 1 - names.index(network.stage_of(name))
            expected[name] = 0.3 * 0.4**depth if depth else 0.3 * 5
    assert found == pytest.approx(expected, rel=1e-15)
    plan = freeze_plan(network, found)
    for row, depth in zip(plan, range(len(names))[::-1], strict=True):
        rate = 0.3 * 0.4**depth if depth else 1.5
        assert (row.depth, row.lr) == (depth, f"{rate:.2e}" if row.trainable else "-")


def test_a_stage_is_as_many_times_slower_as_its_strategy_says() -> None:
    network = on_meta("resnet18")
    for strategy, factor in {"discriminative": 2.6, "layer_decay(0.8)": 1 / 0.8}.items():
        (phase,) = load(None, [f"strategy={strategy}"], environ={}).phases
        found = rates_of(parameter_groups(named(network), phase.optimizer, network.depth_of))
        biases = ["bn1.bias", *(f"layer{i}.0.bn1.bias" for i in range(1, 5)), "fc.bias"]
        for before, after in pairwise(biases):
            assert found[after] / found[before] == pytest.approx(factor, rel=1e-12)
        assert found["fc.bias"] == phase.optimizer.lr


@settings(max_examples=50, deadline=None)
@given(schedules, st.integers(1, 40), st.integers(1, 9))
def test_every_schedule_scales_every_rate_alike(
    schedule: ScheduleConfig, total: int, per_epoch: int
) -> None:
    groups = parameter_groups(toy().named_parameters(), RATED, DEPTHS.__getitem__)
    optimizer = make_optimizer(groups, RATED)
    for step in range(total):
        factor = lr_factor(schedule, step, total, per_epoch)
        assert set_lr(optimizer, factor) == 0.3 * 5 * factor
        found = rates_of(optimizer.param_groups)
        assert found["0.weight"] == found["0.bias"] == 0.3 * 0.4 * factor
        assert found["2.weight"] == found["2.bias"] == 0.3 * 5 * factor


def test_what_is_of_no_stage_counts_as_the_heads() -> None:
    network = on_meta("resnet18")
    own = [("strength", nn.Parameter(torch.zeros(())))]
    found = rates_of(parameter_groups([*named(network), *own], RATED, network.depth_of))
    assert found["strength"] == found["fc.weight"] == 1.5


def test_one_rate_and_decay_is_one_group() -> None:
    network = on_meta("resnet18")
    for config in (OptimizerConfig(), OptimizerConfig(weight_decay=0.1)):
        assert len(parameter_groups(named(network), config, network.depth_of)) == 1
    both = RATED.model_copy(update={"decay_norm_and_bias": False})
    assert len(parameter_groups(named(network), both, network.depth_of)) == 6 * 2


def test_weight_decay_is_left_off_for_norm_and_bias_where_that_is_asked_for() -> None:
    network = on_meta("resnet18")
    still = {
        name
        for module_name, module in network.model.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.Linear)
        for name in (f"{module_name}.bias", *([f"{module_name}.weight"] * hasattr(module, "eps")))
    }
    for asked in (True, False):
        config = OptimizerConfig(weight_decay=0.1, decay_norm_and_bias=asked)
        decay = rates_of(parameter_groups(named(network), config), "weight_decay")
        assert decay == {n: 0.0 if n in still and not asked else 0.1 for n, _ in named(network)}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_groups_move_their_weights_as_torchs_own_do(optimizer: Any) -> None:
    update = {"name": optimizer, "decay_norm_and_bias": False, "lr": 0.01}
    config = RATED.model_copy(update=update)
    ours, theirs = toy(), toy()
    groups = parameter_groups(ours.named_parameters(), config, DEPTHS.__getitem__)
    descend(ours, make_optimizer(groups, config))
    plain = [
        {"params": [theirs[0].weight], "lr": 0.01 * 0.4, "weight_decay": 0.1},
        {"params": [theirs[0].bias], "lr": 0.01 * 0.4, "weight_decay": 0.0},
        {"params": [theirs[2].weight], "lr": 0.05, "weight_decay": 0.1},
        {"params": [theirs[2].bias], "lr": 0.05, "weight_decay": 0.0},
    ]
    made = torch.optim.SGD(plain, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(plain)
    descend(theirs, made)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_state_is_found_again_by_name_in_groups_of_another_order(optimizer: Any) -> None:
    config = RATED.model_copy(update={"name": optimizer})
    model = toy()
    before = make_optimizer(parameter_groups(model.named_parameters(), config), config)
    descend(model, before, 3)
    groups = parameter_groups(reversed(list(model.named_parameters())), config, DEPTHS.__getitem__)
    after = make_optimizer(groups, config)
    checkpoint.load_optimizer(after, checkpoint.optimizer_tensors(before))
    assert len(after.param_groups) == 2
    for parameter in model.parameters():
        for key, value in before.state[parameter].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after.state[parameter][key]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("layer_decay", 2), ("layer_decay", 0), ("head_factor", 0), ("head_factor", -1)],
)
def test_factors_that_mean_nothing_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"optimizer.{key}: must be (greater|less) than"):
        load(None, [f"optimizer.{key}={value}"], environ={})
