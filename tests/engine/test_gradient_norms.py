"""How much each stage would have to change, against a direct computation in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from freezing_toys import toy
from torch import Tensor

from tl.arguments import load
from tl.data.images import BadImage
from tl.data.sources import open_source
from tl.data.split import Source
from tl.engine import gradient_norms as module
from tl.engine.gradient_norms import gradient_norms, measure
from tl.errors import UserError
from tl.models import zoo
from tl.models.network import Network
from tl.models.preprocessing import preprocessing_of, with_image_size

IMAGES = torch.randn(7, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 1, 2])


def batches(images: Tensor, *sizes: int) -> list[dict[str, Any]]:
    """The images in batches of these sizes, and after each a place of padding."""
    found, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        empty = torch.full_like(images[:1], 3.0)
        weight = torch.tensor([1.0] * size + [0.0])
        label = torch.cat([LABELS[rows], torch.tensor([2])])
        found.append({"image": torch.cat([images[rows], empty]), "label": label, "weight": weight})
        start += size
    return found


def direct(network: Network, images: Tensor) -> dict[str, float]:
    """The definition: the gradient of one mean loss, by autograd, and norms by torch."""
    network.eval()
    loss = F.cross_entropy(network(images), LABELS)
    names = [name for name, _ in network.model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(network.model.parameters()))
    norms = {}
    for stage in network.stages:
        mine = [i for i, name in enumerate(names) if network.stage_of(name) == stage.name]
        weights = [network.model.get_parameter(names[i]) for i in mine]
        norm, size = (
            torch.linalg.vector_norm(torch.cat([t.detach().flatten() for t in tensors]))
            for tensors in ([gradients[i] for i in mine], weights)
        )
        norms[stage.name] = (norm / size).item()
    return norms


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 5, 1)])
def test_they_are_the_norms_of_gradients_over_those_of_weights(sizes: tuple[int, ...]) -> None:
    """Float64: sums in another order, some ulps."""
    network = toy().double()
    expected = direct(toy().double(), IMAGES)
    assert gradient_norms(network, batches(IMAGES, *sizes)) == pytest.approx(expected, rel=1e-12)
    assert list(expected) == ["one", "two", "hidden", "head"]
    assert all(norm > 0 for norm in expected.values())


def test_in_float32_they_are_near() -> None:
    expected = direct(toy().double(), IMAGES)
    found = gradient_norms(toy(), batches(IMAGES.float(), 4, 3))
    assert found == pytest.approx(expected, rel=1e-5)


def test_nothing_of_the_network_moves_and_no_gradient_is_left() -> None:
    network = toy()
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    gradient_norms(network, batches(IMAGES.float(), 7))
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_an_auxiliary_classifier_is_left_out() -> None:
    torch.manual_seed(0)
    network = zoo.build("googlenet", 3, 32)
    images = torch.randn(2, 3, 32, 32)
    batch = {"image": images, "label": torch.tensor([0, 2]), "weight": torch.ones(2)}
    with_aux = gradient_norms(network, [batch])
    for name, parameter in network.model.named_parameters():
        if name.startswith("aux"):
            parameter.data.mul_(1000)
    assert gradient_norms(network, [batch]) == with_aux


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "hidden"), (None, "not one")])
def test_no_image_and_no_number_are_said(value: float | None, message: str) -> None:
    network = toy()
    if value is not None:
        network.model.hidden.weight.data[0] = value
    given = batches(IMAGES.float(), 7) if value is not None else []
    with pytest.raises(UserError, match=message):
        gradient_norms(network, given)


def measured(monkeypatch: pytest.MonkeyPatch, most: int, *overrides: str) -> dict[str, float]:
    monkeypatch.setattr(module, "MOST_IMAGES", most)
    arguments = ["data.source=digits", "data.max_train=90", *overrides]
    config = load(None, arguments, environ={}).config
    source = open_source(config.data, config.seed, None)
    return _measure(config, source)


def _measure(config: Any, source: Source) -> dict[str, float]:
    torch.manual_seed(0)
    network = zoo.build("squeezenet1_1", len(source.classes), 32)
    preprocessing = with_image_size(preprocessing_of("squeezenet1_1", None), 32)
    return measure(config, source, network, preprocessing, torch.device("cpu"))


def test_they_are_measured_over_images_that_the_seed_chooses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = measured(monkeypatch, 40)
    assert measured(monkeypatch, 40) == some  # bit for bit
    assert measured(monkeypatch, 40, "augment=trivial", "global_batch_size=3") == some
    assert measured(monkeypatch, 41) != some
    assert measured(monkeypatch, 40, "seed=1") != some
    assert measured(monkeypatch, 1000) == measured(monkeypatch, 90)


def test_a_bad_image_is_an_error_or_left_out() -> None:
    config = load(None, ["data.source=digits", "data.max_train=9"], environ={}).config
    source = open_source(config.data, config.seed, None)
    good = source.train.read

    def read(index: int) -> Any:
        if index == 4:
            raise BadImage("4.png", "it is torn")
        return good(index)

    torn = replace(source, train=replace(source.train, read=read))
    with pytest.raises(UserError, match=r"cannot decode 4\.png: it is torn"):
        _measure(config, torn)
    data = config.data.model_copy(update={"bad_images": "skip"})
    whole = replace(source, train=source.train.take([i for i in range(9) if i != 4]))
    found = _measure(config.model_copy(update={"data": data}), torn)
    assert found == pytest.approx(_measure(config, whole), rel=1e-4)  # float32, another order
