"""A graft copies exactly the parts that were named, says what did not fit, or changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tl.config import GraftConfig, ModelConfig
from tl.errors import UserError
from tl.models import saved, weights, zoo
from tl.models.graft import graft, with_graft
from tl.models.load_report import by_stage
from tl.models.preprocessing import preprocessing_of


@pytest.fixture(scope="module")
def donor():
    torch.manual_seed(1)
    return zoo.build("resnet34", 10).eval()


@pytest.fixture(scope="module")
def file(donor, tmp_path_factory):
    path = tmp_path_factory.mktemp("donor") / "resnet34.pth"
    torch.save(donor.model.state_dict(), path)
    return str(path)


def copies(network):
    return {name: value.clone() for name, value in network.model.state_dict().items()}


def changed(network, before):
    return {n for n, v in network.model.state_dict().items() if not torch.equal(v, before[n])}


def learned(names):
    """Counters of BatchNorm are the same in all networks that have not trained."""
    return {n for n in names if not n.endswith(("num_batches_tracked", "_mean", "_var"))}


def wish(weights, **keys):
    return GraftConfig.model_validate({"weights": weights, **keys})


def test_a_stage_of_another_architecture_gives_the_same_outputs(donor, file):
    network = zoo.build("wide_resnet50_2", 3)  # its stem is a ResNet's
    before = copies(network)
    for name in ("conv1", "bn1"):
        done = graft(network, wish(file, **{"from": name}))
        assert done.new == done.homeless == done.misshaped == ()
    assert changed(network, before) <= {n for n in before if n.startswith(("conv1.", "bn1."))}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval().features(x, 1), donor.features(x, 1))


def test_what_has_no_place_and_what_gets_nothing_is_named(donor, file):
    small = zoo.build("resnet18", 3)  # two blocks in each stage; ResNet-34 has three in layer1
    before = copies(small)
    report = weights.load(small, None)
    done = graft(small, wish(file, **{"from": "layer1"}))
    report = with_graft(report, wish(file, **{"from": "layer1"}), done)
    layer1 = {n for n in before if n.startswith("layer1.")}
    assert set(done.copied) == layer1 == set(report.names)
    assert learned(changed(small, before)) <= learned(layer1)
    assert all(
        torch.equal(small.model.state_dict()[n], donor.model.state_dict()[n]) for n in layer1
    )
    assert set(done.homeless) == {n for n in donor.model.state_dict() if n.startswith("layer1.2.")}
    assert not layer1 & set(report.new)
    assert set(report.new) | layer1 == set(before)
    assert "not in the network: layer1.2.conv1.weight" in report.notes[-1]
    counts = {row.stage: row for row in by_stage(small, report)}
    assert (counts["layer1"].loaded, counts["layer1"].new) == (len(layer1), 0)
    # The other way, the third block gets nothing.
    torch.save(small.model.state_dict(), file.replace("34", "18"))
    large = zoo.build("resnet34", 3)
    done = graft(large, wish(file.replace("34", "18"), **{"from": "layer1"}))
    assert {n.partition(".conv")[0] for n in done.new if "conv" in n} == {"layer1.2"}


def test_a_part_gets_another_name(donor, file):
    network = zoo.build("resnet18", 3)
    done = graft(network, wish(file, **{"from": "layer2.1", "to": "layer2.1"}))
    graft(network, wish(file, match=r"layer1\.2\.(.*)", rename=r"layer1.0.\1"))
    mine, theirs = network.model.state_dict(), donor.model.state_dict()
    for name in done.copied:
        assert torch.equal(mine[name], theirs[name])
    assert torch.equal(mine["layer1.0.conv2.weight"], theirs["layer1.2.conv2.weight"])
    graft(network, wish(file, **{"from": "layer3.4", "to": "layer3.1"}))
    assert torch.equal(mine["layer3.1.bn1.weight"], theirs["layer3.4.bn1.weight"])


def test_stages_of_a_run_go_by_their_names(tmp_path):
    """fire4 is features.6 in one SqueezeNet, and features.5 in the other."""
    old = zoo.build("squeezenet1_1", 2)
    saved.save(old, ["a", "b"], preprocessing_of("squeezenet1_1", None), tmp_path)
    new = zoo.build("squeezenet1_0", 2)
    for name in ("fire4", "fire5"):
        done = graft(new, wish(str(tmp_path), **{"from": name}))
        assert done.new == done.homeless == done.misshaped == ()
    x = torch.randn(1, 128, 9, 9)
    with torch.no_grad():
        theirs = old.model.features[7](old.model.features[6](x))
        assert torch.equal(new.model.features[7](new.model.features[5](x)), theirs)


def test_another_shape_is_refused_or_skipped_by_name(file):
    network = zoo.build("resnet50", 3)
    before = copies(network)
    with pytest.raises(UserError, match=r"layer1.0.conv1.weight \(64, 64, 3, 3\) instead of") as e:
        graft(network, wish(file, **{"from": "layer1"}))
    assert "on_mismatch: skip" in str(e.value)
    assert not changed(network, before)
    done = graft(network, wish(file, **{"from": "layer1", "on_mismatch": "skip"}))
    assert "layer1.0.conv1.weight" in done.misshaped
    assert "layer1.0.conv2.weight" in done.copied
    assert learned(changed(network, before)) <= learned(done.copied)
    with pytest.raises(UserError, match="not one of 2 tensors has the shape"):
        graft(network, wish(file, **{"from": "fc", "on_mismatch": "skip"}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"from": "layre1"}, r"Nearest in the file: layer1.*Nearest in the network: layer1"),
        ({"from": "layer1", "to": "lyer2"}, r"to 'lyer2' .*matches nothing.*network: .*layer2"),
        ({"match": r"block1\.(.*)"}, r"matches nothing\. Nearest in the file"),
        ({"match": r"layer1\.(.*)", "rename": r"x.\1"}, r"names match in the file, such as layer1"),
        ({"match": r"layer1\.\d\.(.*)", "rename": r"layer1.0.\1"}, "copies two names to one"),
    ],
)
def test_what_cannot_be_copied_is_refused_with_what_there_is(file, keys, message):
    network = zoo.build("resnet18", 3)
    before = copies(network)
    with pytest.raises(UserError, match=message):
        graft(network, wish(file, **keys))
    assert not changed(network, before)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    network = zoo.build("resnet18", 3)
    torch.save({"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"no finite numbers in conv1\.weight"):
        graft(network, wish(str(tmp_path / "a.pth"), **{"from": "conv1"}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either from or match"),
        ({"from": "a", "match": "b"}, "either from or match"),
        ({"from": "a", "rename": "b"}, "rename with match"),
        ({"match": "a", "to": "b"}, "to with from"),
        ({"match": "("}, "no regular expression"),
        ({"match": "(a)", "rename": r"\2"}, "no regular expression"),
        ({"match": "(a)", "rename": r"\g<b>"}, "no regular expression"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_at_once(keys, message):
    with pytest.raises(ValidationError, match=message):
        wish("a.pth", **keys)
    dumped = ModelConfig.model_validate(
        {"reuse": {"graft": [{"weights": "a.pth", "from": "b"}]}}
    ).model_dump()
    assert dumped["reuse"]["graft"][0]["from"] == "b"
    assert ModelConfig.model_validate(dumped).reuse.graft[0].from_ == "b"


@pytest.fixture(scope="module")
def grown():
    return zoo.build("resnet18", 3)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["layer1", "layer2", "layer3.1", "layer4.0.conv1", "conv1", "layer2.0"]))
def test_grafting_changes_what_it_names_and_nothing_else(file, donor, grown, part):
    for value in grown.model.state_dict().values():
        value.zero_()
    done = graft(grown, wish(file, **{"from": part}))
    theirs = donor.model.state_dict()
    for name, value in grown.model.state_dict().items():
        if name == part or name.startswith(part + "."):
            assert torch.equal(value, theirs[name])
            assert name in done.copied
        else:
            assert not value.any()
