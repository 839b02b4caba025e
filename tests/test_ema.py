"""The average of the weights: its formula, what it covers, and steps that are left out."""

from __future__ import annotations

import pytest
import torch
from freezing_toys import X, frozen, toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tl.config import Phase
from tl.ema import Ema, averaged_tensors
from tl.errors import UserError
from tl.freezing import freeze, trainable_names
from tl.models.lora import adapt
from tl.models.network import Network

NO, YES = torch.tensor(False), torch.tensor(True)


def walk(network: Network, step: int) -> dict[str, Tensor]:
    """Other weights and statistics, and what they are, in float64."""
    torch.manual_seed(step)
    live = averaged_tensors(network)
    with torch.no_grad():
        for tensor in live.values():
            tensor.add_(torch.rand_like(tensor))  # a variance stays one
    return {name: tensor.detach().double().clone() for name, tensor in live.items()}


@settings(max_examples=20, deadline=None)
@given(
    decay=st.sampled_from([0.5, 0.9, 0.999]),
    left_out=st.lists(st.booleans(), min_size=1, max_size=12),
)
def test_the_average_is_the_closed_form(decay: float, left_out: list[bool]) -> None:
    """sum over steps of (1 - d_n) w_n times the product of later d, and of all d times the start.

    Float64, against float32 with at most twelve roundings of its own.
    """
    network = frozen("full")
    start = {n: t.detach().double().clone() for n, t in averaged_tensors(network).items()}
    ema = Ema(network, decay)
    weights, rates = [start], [1.0]
    for n, bad in enumerate(left_out):
        now = walk(network, n)
        ema.update(n, YES if bad else NO)
        if not bad:
            weights.append(now)
            rates.append(1 - min(decay, (1 + n) / (10 + n)))
    for name in start:
        expected = torch.zeros_like(start[name])
        for i, rate in enumerate(rates):
            rest = torch.tensor([1 - later for later in rates[i + 1 :]]).double().prod()
            expected += rate * rest * weights[i][name]
        torch.testing.assert_close(ema.state()[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_step_that_is_left_out_moves_no_bit() -> None:
    network = frozen("full")
    ema = Ema(network, 0.9)
    walk(network, 0)
    ema.update(0, NO)
    before = {name: tensor.clone() for name, tensor in ema.state().items()}
    walk(network, 1)
    ema.update(1, YES)
    assert all(torch.equal(ema.state()[name], before[name]) for name in before)
    ema.update(2, NO)
    assert not any(torch.equal(ema.state()[name], before[name]) for name in before)


def test_what_trains_and_the_statistics_that_move_are_averaged_and_nothing_else() -> None:
    assert set(averaged_tensors(frozen("head"))) == {"fc.weight", "fc.bias"}
    two = {f"two.bn.running_{what}" for what in ("mean", "var")}
    names = set(averaged_tensors(frozen("last_stages(3)")))
    assert two <= names
    assert not any(name.startswith("one.") or "num_batches" in name for name in names)
    assert not any("running" in name for name in averaged_tensors(frozen("full", "frozen")))
    network = toy()
    adapt(network, "lora(2)", 0)
    freeze(network, trainable_names(network, "lora(2)"))
    assert network.adapters is not None
    assert set(averaged_tensors(network)) == {"fc.weight", "fc.bias", *network.adapters.named()}


def test_the_network_is_its_average_in_the_block_and_itself_after_it() -> None:
    network = frozen("full").eval()
    ema = Ema(network, 0.9)
    start = network(X)
    walk(network, 0)
    walked = network(X)
    pointers = [p.data_ptr() for p in network.parameters()]
    with ema.in_place():
        assert torch.equal(network(X), start)
        with torch.inference_mode():
            torch.testing.assert_close(network(X), start)
    assert torch.equal(network(X), walked)
    assert [p.data_ptr() for p in network.parameters()] == pointers
    ema.keep()
    assert torch.equal(network(X), start)


def test_a_block_that_fails_leaves_the_network_as_it_was() -> None:
    network = frozen("full").eval()
    ema = Ema(network, 0.9)
    walk(network, 0)
    expected = network(X)
    with pytest.raises(ZeroDivisionError), ema.in_place():
        raise ZeroDivisionError
    assert torch.equal(network(X), expected)


def test_without_a_decay_nothing_is_held_and_nothing_done() -> None:
    network = frozen("full").eval()
    expected = network(X)
    ema = Ema(network, None)
    assert ema.state() == {}
    ema.update(0, NO)
    ema.load({"left over": torch.zeros(1)}, "step-1")  # the key was taken out of the config
    with ema.in_place():
        assert torch.equal(network(X), expected)
    ema.keep()
    assert torch.equal(network(X), expected)


def test_an_average_comes_back_bit_for_bit_and_one_of_other_weights_does_not() -> None:
    network = frozen("full")
    ema = Ema(network, 0.9)
    walk(network, 0)
    ema.update(0, NO)
    state = {name: tensor.clone() for name, tensor in ema.state().items()}
    again = Ema(network, 0.9)
    again.load({}, "step-1")  # there was none: it starts now
    assert torch.equal(again.state()["fc.weight"], network.model.fc.weight)
    again.load(state, "step-1")
    assert all(torch.equal(again.state()[name], state[name]) for name in state)
    for wrong in ({"fc.weight": state["fc.weight"]}, {**state, "fc.bias": torch.zeros(9)}):
        with pytest.raises(UserError, match=r"step-1 holds an average \(ema\) of other weights"):
            again.load(wrong, "step-1")


def test_the_layout_in_memory_is_that_of_the_weights() -> None:
    network = frozen("full").to(memory_format=torch.channels_last)
    ema = Ema(network, 0.9)
    for name, tensor in averaged_tensors(network).items():
        assert ema.state()[name].stride() == tensor.stride()


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5, "0.9", True])
def test_a_decay_that_is_none_is_refused(decay: object) -> None:
    with pytest.raises(ValueError, match="ema"):
        Phase.model_validate({"name": "a", "train": "full", "ema": decay})
