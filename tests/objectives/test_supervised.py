"""The loss of a global batch is torch's own, however it is cut into shares and micro-batches."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tl.config import Phase
from tl.errors import UserError
from tl.freezing import freeze, trainable_names
from tl.models import zoo
from tl.models.network import Network
from tl.models.stages import Stage
from tl.objectives import OBJECTIVES, objective_class
from tl.objectives.objective import Objective
from tl.objectives.supervised import Supervised

C, SIZE = 4, 2
# The parts of a sum of at most 24 float64 terms near 1, added in another order: a few ulps (2e-16).
CLOSE = 1e-12


def toy() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 6), nn.Tanh(), nn.Linear(6, C)
    ).double()
    stages = [Stage("body", ("0", "1", "2"), ("1",)), Stage("head", ("3",), ("3",))]
    return Network(model, "toy", {}, stages)


def phase(**keys: Any) -> Phase:
    return Phase(name="p", train="full", **keys)


def batch(images: Tensor, labels: Tensor, count: float, padding: int = 0) -> dict[str, Any]:
    n = len(labels)
    # What stands in a place of padding must not matter: an image far from zero, a wrong label.
    return {
        "image": torch.cat([images, torch.full((padding, *images.shape[1:]), 9.0).to(images)]),
        "label": torch.cat([labels, torch.full((padding,), C - 1)]),
        "id": torch.cat([torch.arange(n), torch.full((padding,), -1)]),
        "weight": torch.cat([torch.ones(n), torch.zeros(padding)]),
        "start": 0,
        "key": torch.arange(n + padding),
        "global_count": torch.tensor(count),
    }


def gradients(network: Network) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 24),
    st.lists(st.integers(0, 24), max_size=7),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.1, 0.9]),
)
def test_the_parts_of_any_cut_add_up_to_cross_entropy_and_its_gradient(
    n: int, cuts: list[int], padding: int, smoothing: float
) -> None:
    torch.manual_seed(n)
    images = torch.randn(n, 3, SIZE, SIZE, dtype=torch.float64)
    labels = torch.randint(0, C, (n,))
    bounds = [0, *sorted(min(cut, n) for cut in cuts), n]

    ours, theirs = toy(), toy()
    objective = Supervised(ours, phase(label_smoothing=smoothing))
    loss, correct = torch.zeros((), dtype=torch.float64), 0.0
    for a, b in pairwise(bounds):
        if a == b and not padding:
            continue
        output = objective(batch(images[a:b], labels[a:b], n, padding), 0.5)
        assert set(output) == {"loss", "accuracy"}
        output["loss"].backward()
        loss += output["loss"].detach()
        correct += output["accuracy"].item()

    logits = theirs.model(images)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=CLOSE)
    assert correct == (logits.argmax(1) == labels).sum().item()
    for mine, reference in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(mine, reference, rtol=CLOSE, atol=CLOSE)


def test_a_share_of_padding_alone_is_worth_nothing() -> None:
    network = toy()
    nothing = torch.zeros(0, 3, SIZE, SIZE, dtype=torch.float64)
    output = Supervised(network, phase())(
        batch(nothing, torch.zeros(0, dtype=torch.int64), 5, padding=1), 0.0
    )
    output["loss"].backward()
    assert (output["loss"].item(), output["accuracy"].item()) == (0.0, 0.0)
    # All parameters get a gradient, so that no process of DDP waits for one; all are zero.
    found = gradients(network)
    assert len(found) == len(list(network.parameters()))
    assert all(not gradient.any() for gradient in found)


def test_the_loss_of_half_precision_logits_is_taken_in_float32() -> None:
    network = toy().to(torch.bfloat16)
    images, labels = torch.randn(8, 3, SIZE, SIZE).bfloat16(), torch.arange(8) % C
    loss = Supervised(network, phase())(batch(images, labels, 8), 0.0)["loss"]
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(network.model(images).float(), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # float32's epsilon is 1.2e-7


# ---------------------------------------------------------------------- auxiliary classifiers


@pytest.fixture(scope="module")
def googlenet() -> Network:
    torch.manual_seed(0)
    return zoo.build("googlenet", C, 64)


def prepared(googlenet: Network, train: str) -> tuple[Network, dict[str, Any]]:
    network = copy.deepcopy(googlenet)
    # Dropout off: the reference below is another forward pass.
    for module in network.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    freeze(network, trainable_names(network, train), batch_norm="frozen")
    network.train()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return network, batch(images, torch.tensor([0, 1, 3]), 3)


def test_googlenets_auxiliary_heads_add_0_3_of_their_loss_each_in_training(
    googlenet: Network,
) -> None:
    network, data = prepared(googlenet, "full")
    found = Supervised(network, phase())(data, 0.0)
    main, second, first = network.model(data["image"])  # torchvision's own forward pass
    losses = [F.cross_entropy(logits, data["label"]) for logits in (main, second, first)]
    assert len({round(loss.item(), 5) for loss in losses}) == 3
    expected = losses[0] + 0.3 * losses[1] + 0.3 * losses[2]
    # float32 through 22 layers; torchvision's pass differs only in how branches are joined.
    torch.testing.assert_close(found["loss"], expected, rtol=1e-5, atol=0)
    assert found["accuracy"] == (main.argmax(1) == data["label"]).sum()


def test_an_auxiliary_head_that_does_not_train_adds_nothing(googlenet: Network) -> None:
    network, data = prepared(googlenet, "head")
    found = Supervised(network, phase())(data, 0.0)["loss"]
    expected = F.cross_entropy(network(data["image"]), data["label"])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_in_eval_mode_there_are_no_auxiliary_losses(googlenet: Network) -> None:
    network, data = prepared(googlenet, "full")
    network.eval()
    found = Supervised(network, phase())(data, 0.0)["loss"]
    expected = F.cross_entropy(network.model(data["image"]), data["label"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------ objectives by name


class WithItsOwn(Objective):
    """An objective that trains something besides the network."""

    def __init__(self, network: Network, phase: Phase) -> None:
        super().__init__(network, phase)
        self.discriminator = nn.Linear(6, 1)


def test_trained_parameters_are_the_networks_by_their_own_names_and_then_others() -> None:
    network = toy()
    freeze(network, trainable_names(network, "head"))
    found = WithItsOwn(network, phase()).trained_parameters()
    names = [name for name, _ in found]
    assert names == ["3.weight", "3.bias", "discriminator.weight", "discriminator.bias"]
    assert found[0][1] is network.model.get_parameter("3.weight")


def test_every_name_in_the_table_is_an_objective() -> None:
    assert OBJECTIVES["supervised"] is Supervised
    for name, found in OBJECTIVES.items():
        assert objective_class(name) is found
        assert issubclass(found, Objective)


def test_an_objective_from_outside_is_found_by_its_reference() -> None:
    assert objective_class("tl.objectives.supervised:Supervised") is Supervised


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("supervized", r"unknown objective 'supervized'\. Did you mean 'supervised'\?"),
        ("torch.nn:Linear", "is not a subclass of tl.objectives.Objective"),
        ("math:pi", "is not a subclass of tl.objectives.Objective"),
        ("no_such_module:X", "cannot be imported"),
    ],
)
def test_a_name_of_no_objective_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective_class(name)
