"""LoRA: W' = W + (alpha / r) B A, on every kind of weight, while it trains and merged."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from freezing_toys import X, on_meta, step, toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models as tv

from tl.config import OptimizerConfig
from tl.errors import UserError
from tl.freeze_plan import assert_unchanged, freeze_plan, frozen_digests
from tl.freezing import freeze, trainable_names
from tl.models import zoo
from tl.models.adapters import ALPHA, Adapters
from tl.models.families import stages_of
from tl.models.lora import adapt, num_adapter_parameters
from tl.models.network import Network, head_parameters
from tl.optim import make_optimizer, parameter_groups


def adapted(network: Network, train: str, seed: int = 0) -> Network:
    adapt(network, train, seed)
    freeze(network, trainable_names(network, train))
    return network


def disturb(network: Network) -> Network:
    """Let B be something, as after some steps; at first it is zero."""
    assert network.adapters is not None
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.adapters.named().items():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.02)
    return network


# ------------------------------------------------------------------------ the formula, in float64


CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 5), (3, 7)),
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "strided 1x1": (nn.Conv2d(4, 6, 1, stride=2), (2, 4, 5, 5)),
    "one dimension": (nn.Conv1d(4, 6, 3, dilation=2), (2, 4, 9)),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("rank", [1, 3])
def test_outputs_and_gradients_are_those_of_the_formula(kind: str, rank: int) -> None:
    """Against autograd through W + (alpha / r) B A written out, in float64 (1e-12)."""
    layer, shape = copy.deepcopy(CASES[kind][0]).double(), CASES[kind][1]
    model = nn.Sequential(layer).requires_grad_(False)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    adapters = Adapters({"0.weight": weight}, rank, seed=3)
    a, b = adapters.named().values()
    torch.manual_seed(0)
    nn.init.normal_(b)
    x = torch.randn(shape, dtype=torch.float64)

    wanted_a, wanted_b = (t.detach().clone().requires_grad_() for t in (a, b))
    full = weight + ALPHA / rank * (wanted_b @ wanted_a).reshape(weight.shape)
    expected = torch.func.functional_call(layer, {"weight": full}, (x,))
    expected.square().sum().backward()

    with adapters.in_place(model):
        got = model(x)
    got.square().sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.grad, wanted_a.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b.grad, wanted_b.grad, rtol=1e-12, atol=1e-12)
    assert weight.grad is None


def test_the_gradients_are_those_of_the_papers_parallel_branch() -> None:
    """h = W x + (alpha / r) B (A x): dB = s g (A x)^T and dA = s B^T g x^T, by hand, in float64."""
    layer = nn.Linear(7, 5).double().requires_grad_(False)
    adapters = Adapters({"0.weight": layer.weight}, 2, seed=0)
    a, b = adapters.named().values()
    torch.manual_seed(0)
    nn.init.normal_(b)
    x, g = torch.randn(4, 7).double(), torch.randn(4, 5).double()
    with adapters.in_place(nn.Sequential(layer)):
        (layer(x) * g).sum().backward()
    scale = ALPHA / 2
    torch.testing.assert_close(b.grad, scale * g.T @ (x @ a.T), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.grad, scale * (g @ b).T @ x, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 12))
def test_the_update_has_the_rank_asked_for_or_the_largest_there_is(
    rows: int, columns: int, rank: int
) -> None:
    weight = torch.zeros(rows, columns, dtype=torch.float64)
    adapters = Adapters({"w": weight}, rank, seed=1)
    named = adapters.named()
    most = min(rank, rows, columns)
    assert [tuple(t.shape) for t in named.values()] == [(most, columns), (rows, most)]
    with torch.no_grad():
        named["w.lora_B"].normal_(generator=torch.Generator().manual_seed(0))
    holder = nn.Module()
    holder.register_parameter("w", nn.Parameter(weight))
    assert torch.linalg.matrix_rank(adapters.merged(holder)["w"]) <= most


# --------------------------------------------------------------------------------- whole networks


def small(kind: str) -> Network:
    """A network of its kind with little of everything, and a head that is not zero."""
    torch.manual_seed(0)
    if kind == "vit":  # attention, whose weights another module than their own uses
        model: nn.Module = tv.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=3)
    elif kind == "swin":  # linear layers that are used by a function
        model = tv.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=3)
    else:
        return zoo.build(kind, 3, 32)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return Network(model, kind, {}, stages_of(model))


# Convolutions; depthwise ones too, with linear layers within blocks; grouped ones.
CONVOLUTIONAL = ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]


@pytest.mark.parametrize("kind", [*CONVOLUTIONAL, "vit", "swin"])
def test_adapters_change_nothing_at_first_and_merged_give_the_same_logits(kind: str) -> None:
    network = small(kind).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before = network(x)
        adapted(network, "lora(2)").eval()
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-6)
        disturb(network)
        with_adapters = network(x)
        assert (with_adapters - before).norm() > 1e-5 * before.norm()
        state = network.merged_state()
        network.merge()
        assert network.adapters is None
        # The very same numbers go through the very same layers.
        assert torch.equal(network(x), with_adapters)
        torch.testing.assert_close(network.model(x), with_adapters, rtol=1e-5, atol=1e-7)
    own = network.model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize("architecture", ["resnet18", "googlenet", "vit_b_16", "convnext_tiny"])
def test_every_convolution_and_linear_layer_outside_the_heads_is_adapted(
    architecture: str,
) -> None:
    network = on_meta(architecture)
    adapted(network, "lora(4)")
    assert network.adapters is not None
    matrices = {n for n, p in network.model.named_parameters() if p.dim() > 1}
    others = {"class_token", "encoder.pos_embedding"}  # of ViT
    scales = {n for n in matrices if n.endswith("layer_scale")}  # of ConvNeXt
    assert set(network.adapters.targets) == matrices - others - scales - head_parameters(network)
    heads = {n for n, p in network.model.named_parameters() if p.requires_grad}
    assert heads == head_parameters(network)
    assert network.frozen_prefix == 0
    count = sum(p.numel() for p in network.adapters.named().values())
    assert count == num_adapter_parameters(network, "lora(4)")


def test_every_adapter_gets_a_gradient_and_the_base_none() -> None:
    """DDP waits for each; GoogLeNet's auxiliary classifiers are among them."""
    network = disturb(adapted(zoo.build("googlenet", 3), "lora(1)")).train()
    logits, auxiliary = network.forward_with_aux(torch.randn(2, 3, 64, 64))
    (logits.sum() + sum(w * out.square().sum() for w, out in auxiliary)).backward()
    assert len(auxiliary) == 2
    for name, parameter in network.named_weights():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_step_moves_the_adapters_and_the_head_and_nothing_else() -> None:
    network = adapted(toy(), "lora(2)")
    before = {k: v.clone() for k, v in network.model.state_dict().items()}
    start = {k: v.clone() for k, v in network.named_weights()}
    digests = frozen_digests(network)
    config = OptimizerConfig(lr=0.1)
    optimizer = make_optimizer(parameter_groups(network.named_weights(), config), config)
    for _ in range(3):
        network.train()
        optimizer.zero_grad()
        network(X).square().mean().backward()
        optimizer.step()
    assert_unchanged(digests, frozen_digests(network), "lora")
    moved = {n for n, p in network.named_weights() if not torch.equal(p, start[n])}
    assert network.adapters is not None
    assert moved == {"fc.weight", "fc.bias", *network.adapters.named()}
    after = network.model.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"fc.weight", "fc.bias"}
    network.merge()
    assert not torch.equal(network.model.one.conv.weight, before["one.conv.weight"])


def test_the_frozen_prefix_ends_where_adapters_begin() -> None:
    network = adapted(on_meta("resnet18"), r"lora(2, layer4\.)")
    assert network.stages[network.frozen_prefix].name == "layer4"
    assert network.adapters is not None
    assert all(name.startswith("layer4.") for name in network.adapters.targets)
    assert "layer3" in network.eval_modules
    # A BatchNorm whose weight is frozen keeps its statistics, also where adapters train.
    assert "layer4.0.bn1" in network.eval_modules


def test_the_plan_counts_adapters_in_their_stage() -> None:
    network = adapted(toy(), "lora(2, conv)")
    rates = {n: 0.1 for n, p in network.named_weights() if p.requires_grad}
    rows = {row.stage: row for row in freeze_plan(network, rates)}
    # Weights 4 x 3 and 4 x 4 as matrices.
    assert (rows["one"].trainable, rows["two"].trainable) == (2 * (4 + 3), 2 * (4 + 4))
    assert rows["one"].frozen == sum(p.numel() for p in network.model.one.parameters())
    assert rows["hidden"].trainable == 0
    assert float(rows["one"].lr) == 0.1


def test_first_values_are_by_the_seed() -> None:
    def first(seed: int) -> list[Tensor]:
        torch.manual_seed(seed + 100)  # which is not looked at
        network = adapted(toy(), "lora(2)", seed)
        assert network.adapters is not None
        return list(network.adapters.named().values())

    assert all(torch.equal(a, b) for a, b in zip(first(1), first(1), strict=True))
    assert not torch.equal(first(1)[0], first(2)[0])


def test_another_strategy_takes_the_adapters_away() -> None:
    network = disturb(adapted(toy(), "lora(2)"))
    adapted(network, "full")
    assert network.adapters is None
    assert all(p.requires_grad for p in network.parameters())
    step(network)


def test_the_layout_of_a_weight_is_kept_and_autocast_does_not_round_the_update() -> None:
    network = zoo.build("resnet18", 3, 32).to(memory_format=torch.channels_last)
    disturb(adapted(network, "lora(2)")).eval()
    weight = network.model.layer1[0].conv1
    with torch.autocast("cpu", dtype=torch.bfloat16), network.adapted():
        inside = weight.weight
    assert inside.dtype == torch.float32
    assert inside.is_contiguous(memory_format=torch.channels_last)
    network.merge()
    assert torch.equal(weight.weight, inside)


def test_a_network_that_fails_runs_with_its_own_weights_afterwards() -> None:
    network = disturb(adapted(toy(), "lora(2)"))
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 9, 2, 2))
    assert "weight" not in network.model.one.conv.__dict__
    with network.adapted(), network.adapted():  # one within another
        inner = network.model.one.conv.weight
    assert not torch.equal(inner, network.model.one.conv.weight)


def test_a_copy_has_adapters_of_its_own() -> None:
    network = disturb(adapted(toy(), "lora(2)"))
    twin = copy.deepcopy(network)
    twin.merge()
    assert network.adapters is not None
    assert torch.equal(twin.eval()(X), network.eval()(X))
    assert not torch.equal(twin.model.one.conv.weight, network.model.one.conv.weight)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("lora", r"lora takes a rank of 1 or more.*lora\(8\), or lora\(8, layer4"),
        ("lora()", "takes a rank"),
        ("lora(0)", r"lora\(0\): lora takes a rank of 1 or more"),
        ("lora(-2)", "takes a rank"),
        ("lora(x)", r"lora\(x\): lora takes a rank"),
        ("lora(2.5)", "takes a rank"),
        ("lora(layer4, 2)", "takes a rank"),
        (f"lora({'9' * 5000})", "takes a rank"),
        ("lora(4, ()", r"lora\(4, \(\): not a regular expression"),
        (
            "lora(4, layer5)",
            r"lora\(4, layer5\) matches none of the 20 weights of resnet18 that can have adapters: "
            r"conv1.weight, .*lora\(4\) adapts all of them",
        ),
        (r"lora(4, fc\.)", "matches none of the 20 weights"),  # the head trains in full
    ],
)
def test_what_means_nothing_is_refused_with_what_would(train: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        trainable_names(on_meta("resnet18"), train)
    assert len(str(caught.value)) < 6000


def test_adapters_of_another_phase_are_not_loaded() -> None:
    network = adapted(toy(), "lora(2)")
    other = adapted(toy(), "lora(1)")
    assert network.adapters is not None
    assert other.adapters is not None
    with pytest.raises(UserError, match="step-3 holds other adapters"):
        network.adapters.load(dict(other.adapters.named()), "step-3")
    network.adapters.load(dict(disturb(adapted(toy(), "lora(2)")).adapters.named()), "step-3")  # type: ignore[union-attr]


def test_bfloat16_images_go_through() -> None:
    network = disturb(adapted(toy(), "lora(2)")).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(network(X).float(), torch.zeros(8, dtype=torch.long))
    loss.backward()
    assert network.adapters is not None
    assert all(p.grad is not None for p in network.adapters.named().values())
