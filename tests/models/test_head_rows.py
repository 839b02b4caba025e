"""A head from rows of the pretrained one gives the pretrained logits of those classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import models as tv

from tl.errors import UserError
from tl.models import saved, weights, zoo
from tl.models.head_rows import HeadClasses, imagenet_classes, rows_of
from tl.models.preprocessing import preprocessing_of

X = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def squeezenet(shared):
    return str(shared / "weights" / "squeezenet1_0-imagenet.pth")


def test_published_rows_give_the_published_logits(squeezenet):
    original = tv.squeezenet1_0().eval()
    original.load_state_dict(torch.load(squeezenet, weights_only=True))
    network = zoo.build("squeezenet1_0", 3).eval()
    wanted = HeadClasses(["bees", "ants", "tiger_cat"], {"bees": "bee", "ants": 310})
    report = weights.load(network, squeezenet, head_classes=wanted)
    assert report.new == ()
    assert "3 of 3 classes start from rows: bees from 309 'bee', ants from 310" in report.notes[0]
    with torch.no_grad():
        # As convolutions of 3 and of 1000 kernels sum in another order.
        torch.testing.assert_close(
            network(X), original(X)[:, [309, 310, 282]], rtol=1e-4, atol=1e-4
        )


def test_a_class_without_a_row_starts_new_and_is_named(squeezenet):
    network = zoo.build("squeezenet1_0", 2)
    fresh = network.model.classifier[1].weight.detach().clone()
    report = weights.load(network, squeezenet, head_classes=HeadClasses(["bee", "wolfs"], {}))
    published = torch.load(squeezenet, weights_only=True)["classifier.1.weight"]
    assert torch.equal(network.model.classifier[1].weight[0], published[309])
    assert torch.equal(network.model.classifier[1].weight[1], fresh[1])
    assert set(report.new) == {"classifier.1.weight", "classifier.1.bias"}
    assert report.notes[-1].startswith("head: without a row, new: wolfs Did you mean '")
    assert network.arguments["final_relu"] is False  # a new row under a ReLU may never learn


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "timm:resnet10t"])
def test_rows_of_a_run_go_by_its_classes(name, tmp_path):
    old = zoo.build(name, 3, 64).eval()
    saved.save(old, ["a", "b", "c"], preprocessing_of(name, None), tmp_path)
    new = zoo.build(name, 2, 64).eval()
    report = weights.load(new, str(tmp_path), head_classes=HeadClasses(["c", "A"], {}))
    assert report.new == ()
    x = X[..., :64, :64]
    with torch.no_grad():
        torch.testing.assert_close(new(x), old(x)[:, [2, 0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "called", "message"),
    [
        (["ants"], {"ant": "ant"}, r"unknown class of the data 'ant'.*Did you mean 'ants'"),
        (["ants"], {"ants": "antt"}, r"unknown class of the weights 'antt'.*Did you mean 'ant'"),
        (["ants"], {"ants": 1000}, r"'ants' is to be row 1000, and .* rows 0 to 999"),
        (["CARDIGAN"], {}, r"name of 2 .*head_classes=\{CARDIGAN: 264\} \(of 264 or 474\)"),
        (["ants", "bees"], {}, r"none of the classes ants, bees .* as model.head_classes=\{ants:"),
        (["ant", "b"], {"b": 310}, "ant, b would start as one and the same"),
    ],
)
def test_classes_that_cannot_be_found_are_refused_with_the_mend(classes, called, message):
    with pytest.raises(UserError, match=message):
        rows_of(HeadClasses(classes, called), imagenet_classes(), 1000)


def test_rows_that_have_no_names_go_by_number():
    with pytest.raises(UserError, match="weights of unknown classes: give numbers of rows"):
        rows_of(HeadClasses(["a"], {}), None, 7)
    assert rows_of(HeadClasses(["a", "b"], {"b": 6}), None, 7) == [None, 6]


def test_a_file_without_a_head_has_no_rows(tmp_path):
    state = zoo.build("resnet18", 10).model.state_dict()
    torch.save({n: v for n, v in state.items() if "fc" not in n}, tmp_path / "a.pth")
    for keep, message in ((None, "no head with rows for classes"), (2, "puts another one on")):
        network = zoo.build("resnet18", 1, keep=keep)
        with pytest.raises(UserError, match=message):
            weights.load(network, str(tmp_path / "a.pth"), head_classes=HeadClasses(["a"], {}))
    with pytest.raises(UserError, match=r"model\.head=classes is about pretrained weights"):
        weights.load(zoo.build("resnet18", 1), None, head_classes=HeadClasses(["a"], {}))


@pytest.mark.parametrize(
    "bad",
    [
        {"fc.bias": torch.zeros(())}, {"fc.weight": torch.zeros(10)},
        {"fc.weight": torch.zeros(10, 4)}, {"fc.bias": torch.zeros(9)},
        {"fc.weight": torch.full((10, 512), torch.nan)},
    ],
)  # fmt: skip
def test_a_head_of_odd_shapes_or_values_is_one_clear_error(bad):
    state = {**zoo.build("resnet18", 10).model.state_dict(), **bad}
    wanted = HeadClasses(["a"], {"a": 3})
    with pytest.raises(UserError, match=r"no head with rows|no finite numbers"):
        weights.fit(
            zoo.build("resnet18", 1), state, "file", False, lambda n: rows_of(wanted, None, n)
        )


NAMES = imagenet_classes()


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=9, unique=True), st.booleans())
def test_every_name_of_imagenet_finds_its_row_however_it_is_written(names, folder):
    if folder:
        names = [name for name in names if name.casefold() != "cardigan"] or ["tench"]
    written = [name.replace(" ", "_").upper() if folder else name for name in names]
    expected = [NAMES.index(name) for name in names]
    assert rows_of(HeadClasses(written, {}), NAMES, 1000) == expected
