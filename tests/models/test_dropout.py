"""Dropout belongs to the image: the same on any number of processes, and still dropout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tl.models.dropout import ImageDropout, give_images_their_own, image_keys, not_by_image


def net(layer: nn.Module) -> tuple[nn.Sequential, ImageDropout]:
    model = nn.Sequential(layer).train()
    draws = give_images_their_own(model)
    draws.keys = image_keys(seed=0, step=3, ids=torch.arange(6))
    [replaced] = model
    assert isinstance(replaced, ImageDropout)
    return model, replaced


LAYERS = [nn.Dropout(0.4), StochasticDepth(0.4, "row")]


@pytest.mark.parametrize("layer", LAYERS, ids=["dropout", "stochastic depth"])
def test_the_images_of_a_batch_are_dropped_alike_however_it_is_cut(layer: nn.Module) -> None:
    model, replaced = net(layer)
    x = torch.ones(6, 50, 4)
    whole, keys = model(x), replaced.draws.keys
    assert keys is not None
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        replaced.draws.keys = keys[part]
        assert torch.equal(model(x[part]), whole[part])


@pytest.mark.parametrize("layer", LAYERS, ids=["dropout", "stochastic depth"])
def test_another_step_image_or_seed_drops_otherwise(layer: nn.Module) -> None:
    model, replaced = net(layer)
    x, ids = torch.ones(64, 50, 4), torch.arange(64)
    outputs = []
    for seed, step, shift in ((0, 3, 0), (0, 4, 0), (1, 3, 0), (0, 3, 64)):
        replaced.draws.keys = image_keys(seed, step, ids + shift)
        outputs.append(model(x))
    assert all(not torch.equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def _kept(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) != 0).double()


def test_as_many_values_are_dropped_as_should_be_and_the_mean_stays() -> None:
    model, replaced = net(nn.Dropout(0.4))
    replaced.draws.keys = image_keys(0, 1, torch.arange(1000))
    x = torch.ones(1000, 1000)
    kept = _kept(model, x)
    # A million draws: the standard error of a share is 5e-4; of an image's thousand, 0.0155.
    assert kept.mean().item() == pytest.approx(0.6, abs=3e-3)
    assert (kept.mean(1) - 0.6).abs().max() < 0.08
    assert (kept.mean(0) - 0.6).abs().max() < 0.08
    assert model(x).unique().tolist() == pytest.approx([0, 1 / 0.6])


def test_stochastic_depth_drops_whole_images() -> None:
    model, replaced = net(StochasticDepth(0.4, "row"))
    replaced.draws.keys = image_keys(0, 1, torch.arange(5000))
    kept = _kept(model, torch.ones(5000, 7))
    assert torch.equal(kept.amin(1), kept.amax(1))
    assert kept[:, 0].mean().item() == pytest.approx(0.6, abs=0.03)  # four standard errors


def test_in_eval_mode_and_without_keys_it_is_pytorchs() -> None:
    model, replaced = net(nn.Dropout(0.4))
    x = torch.ones(6, 50)
    assert torch.equal(model.eval()(x), x)
    replaced.draws.keys = None
    torch.manual_seed(5)
    ours = model.train()(x)
    torch.manual_seed(5)
    assert torch.equal(ours, nn.Dropout(0.4).train()(x))


def test_what_still_draws_by_process_is_found() -> None:
    model = nn.Sequential(
        nn.Dropout(0.1),
        nn.AlphaDropout(0.1),
        nn.Dropout2d(0.0),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.MultiheadAttention(4, 2),
        StochasticDepth(0.2, "batch"),
    )
    give_images_their_own(model)
    assert not_by_image(model) == ["1", "3", "5"]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layer", LAYERS, ids=["dropout", "stochastic depth"])
def test_compiled_it_drops_the_same(layer: nn.Module, backend: str) -> None:
    """Both ways through it, and for batches of several sizes: the compiler then has symbols."""
    torch.compiler.reset()
    model, replaced = net(layer)
    compiled = torch.compile(model, backend=backend)
    for images in (6, 4, 5):
        replaced.draws.keys = image_keys(0, images, torch.arange(images))
        x = torch.ones(images, 50, 4, requires_grad=True)
        ours, theirs = compiled(x), model(x)
        assert torch.equal(ours, theirs)
        gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)]
        assert torch.equal(*gradients)


def test_a_compiler_sees_no_integers_that_wrap_around() -> None:
    """It reasons about their range, and fails where they leave 64 bits."""
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        numbers = [a for n in graph.graph.nodes for a in n.args if isinstance(a, int)]
        assert all(abs(number) < 2**31 for number in numbers)
        return graph

    torch.compiler.reset()
    model, _ = net(nn.Dropout(0.4))
    torch.compile(model, backend=backend)(torch.ones(6, 50))
    assert sum("image_draws" in name for name in seen) == 1


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 2**40))
def test_keys_are_splitmix64_of_seed_step_and_image(seed: int, step: int, image: int) -> None:
    """Against its definition, in numbers without a sign and without a limit."""

    def splitmix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    base = splitmix((splitmix(seed) + step) % 2**64)
    expected = splitmix((image * 0x9E3779B97F4A7C15 + base) % 2**64)
    [key] = image_keys(seed, step, torch.tensor([image])).tolist()
    assert key % 2**64 == expected
