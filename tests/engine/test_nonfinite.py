"""What is done about a step whose loss or gradient is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tl.engine.agreement import Verdict
from tl.engine.nonfinite import Guard, Policy, RollBack

WHAT = "the loss is not finite"


def guard(policy: str) -> tuple[Guard, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, fused=True)
    return Guard(optimizer, None, Policy.of(policy)), optimizer


def test_a_policy_is_read_from_the_config() -> None:
    assert Policy.of("stop") == Policy("stop", 0)
    assert Policy.of("skip(3)") == Policy("skip", 3)
    assert Policy.of("rollback(12)") == Policy("rollback", 12)


def test_stop_stops_skip_says_and_rollback_goes_back() -> None:
    with pytest.raises(FloatingPointError, match="at step 7"):
        Policy.of("stop").leave_out(7, WHAT, 0)
    assert Policy.of("skip(2)").leave_out(7, WHAT, 1) == f"{WHAT}: step 7 is left out (2 of 2)"
    with pytest.raises(FloatingPointError, match=r"once more than nonfinite=skip\(2\)"):
        Policy.of("skip(2)").leave_out(7, WHAT, 2)
    with pytest.raises(RollBack) as caught:
        Policy.of("rollback(1)").leave_out(7, WHAT, 0)
    assert caught.value.step == 7
    with pytest.raises(FloatingPointError):
        Policy.of("rollback(1)").leave_out(7, WHAT, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_gradient_of_a_loss_that_is_no_number_is_none(value: float) -> None:
    """Also where the loss does not depend on the weights in a way that shows."""
    here, _ = guard("stop")
    weight = nn.Parameter(torch.ones(3))
    here.backward(weight.sum() + value, factor=2)
    assert weight.grad is not None
    assert weight.grad.isnan().all()


def test_a_loss_that_is_one_keeps_its_gradient() -> None:
    here, _ = guard("stop")
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    here.backward(weight.square().sum(), factor=3)
    assert torch.equal(weight.grad, torch.tensor([6.0, 12.0]))


@pytest.mark.parametrize(
    ("policy", "after"), [("stop", 1.0), ("rollback(1)", 1.0), ("skip(1)", 0.0)]
)
def test_after_a_bad_step_only_skip_lets_the_next_one_move_weights(
    policy: str, after: float
) -> None:
    """The host learns of it a step later: until then nothing that is built on it may count."""
    here, optimizer = guard(policy)
    flags = []
    for norm in (1.0, float("nan"), 1.0):
        here.judge(torch.tensor(norm))
        flags.append(optimizer.found_inf.item())
    assert flags == [0.0, 1.0, after]


def test_an_overflow_is_a_fault_only_where_no_scale_could_mend_it() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    overflow, bad_loss = Verdict(False, True), Verdict(True, True)
    for scale, fault in ((2.0, ""), (0.5, "the gradient is not finite")):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))  # makes the scale
        here = Guard(optimizer, scaler, Policy.of("stop"))
        assert here.fault(overflow) == fault
        assert here.fault(bad_loss) == WHAT
    assert guard("stop")[0].fault(overflow) == "the gradient is not finite"
    assert guard("stop")[0].fault(Verdict(False, False)) == ""


class CountingScaler(torch.amp.GradScaler):
    """Counts how often its scale is asked for: on a GPU, each time the host waits."""

    asked = 0

    def get_scale(self) -> float:
        self.asked += 1
        return super().get_scale()


def test_the_scale_is_asked_for_only_where_a_gradient_overflowed() -> None:
    optimizer = guard("stop")[1]
    scaler = CountingScaler("cpu")
    scaler.scale(torch.ones(()))
    here = Guard(optimizer, scaler, Policy.of("stop"))
    for verdict, asked in (
        (Verdict(False, False), 0),
        (Verdict(True, False), 0),
        (Verdict(False, True), 1),
    ):
        here.fault(verdict)
        assert scaler.asked == asked, verdict
