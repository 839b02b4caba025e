"""Checkpoints as people have them: prefixes, wrappers, self-supervised heads, by one clear rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tl.errors import UserError
from tl.models import weight_files, weights, zoo
from tl.models.load_report import by_stage
from tl.models.prefixes import common_prefix


@pytest.fixture(scope="module")
def donor():
    """A ResNet's weights, by torchvision's names."""
    torch.manual_seed(1)
    return zoo.build("resnet18", 10).model.state_dict()


@pytest.fixture
def network():
    return zoo.build("resnet18", 3)


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def body(state):
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def loaded(network, tmp_path, content, **keywords):
    torch.save(content, tmp_path / "weights.pth")
    return weights.load(network, str(tmp_path / "weights.pth"), **keywords)


def check(network, report, donor):
    """The body is the donor's, the head is new, and the report says so of each tensor."""
    mine = network.model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in body(donor).items())
    assert set(report.new) == {"fc.weight", "fc.bias"}
    assert set(report.names) == set(body(donor))
    counts = by_stage(network, report)
    assert sum(row.loaded for row in counts) == len(report.names)
    assert sum(row.dropped for row in counts) == len(report.dropped)
    assert counts[len(network.stages) - 1][:3] == ("head", 0, 2)


PROJECTION = {"0.weight": torch.zeros(4, 4), "0.bias": torch.zeros(4), "2.weight": torch.zeros(4)}
QUEUE = {"queue": torch.zeros(8, 4), "queue_ptr": torch.zeros(1, dtype=torch.int64)}


@pytest.mark.parametrize(
    "prefix",
    ["backbone.", "encoder.", "model.", "net.", "module.backbone.", "model.encoder.trunk."],
)
def test_a_prefix_is_found_and_said(network, tmp_path, donor, prefix):
    report = loaded(network, tmp_path, {**under(prefix, donor), "other.weight": torch.zeros(1)})
    check(network, report, donor)
    assert f"names stand under {prefix!r}; 1 under others, dropped: other.weight" in report.notes


@pytest.mark.parametrize("both", [False, True])
def test_mocos_checkpoint_gives_its_query_encoder(network, tmp_path, donor, both):
    state = under("module.encoder_q.", {**body(donor), **under("fc.", PROJECTION)})
    state |= under("module.", QUEUE)
    if both:
        keys = {name: value + 1 for name, value in donor.items()}
        state |= under("module.encoder_k.", {**body(keys), **under("fc.", PROJECTION)})
    report = loaded(network, tmp_path, {"epoch": 200, "arch": "resnet50", "state_dict": state})
    check(network, report, donor)
    assert {"fc.0.weight", "fc.2.weight"} <= set(report.dropped)
    assert any("encoder_q.'" in note for note in report.notes)
    assert any("dropped: fc.0.weight" in note for note in report.notes)


@pytest.mark.parametrize("key", ["teacher", "student"])
def test_dinos_checkpoint_gives_the_network_that_was_asked_for(network, tmp_path, donor, key):
    other = {name: value + 1 for name, value in donor.items()}
    parts = {"teacher": donor, "student": other}
    content = {
        name: under("module.", {**under("backbone.", body(state)), **under("head.", PROJECTION)})
        for name, state in parts.items()
    }
    with pytest.raises(UserError, match=r"tensors under teacher, student: .*weights_key=teacher"):
        loaded(network, tmp_path, {**content, "epoch": 3})
    report = loaded(network, tmp_path, {**content, "epoch": 3}, key=key)
    check(network, report, parts[key])
    assert "head.0.weight" in report.dropped
    with pytest.raises(UserError, match=r"'techer' \(model.weights_key\)\. Did you mean 'teacher'"):
        loaded(network, tmp_path, content, key="techer")


def test_two_networks_in_one_file_have_to_be_chosen_from(network, tmp_path, donor):
    other = {name: value + 1 for name, value in donor.items()}
    state = {**under("teacher.backbone.", donor), **under("student.backbone.", other)}
    with pytest.raises(UserError, match=r"=student.backbone or model.weights_key=teacher.backbone"):
        loaded(network, tmp_path, state)
    for key in ("teacher.backbone", "teacher"):
        check(network, loaded(network, tmp_path, state, key=key), donor)


@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema"])
def test_a_wrapper_that_is_given_is_looked_under(network, tmp_path, donor, key):
    other = {name: value + 1 for name, value in donor.items()}
    for content in ({"model": other, key: donor}, {key: {"state_dict": donor}, "model": other}):
        check(network, loaded(network, tmp_path, content, key=key), donor)
    check(network, loaded(network, tmp_path, {"model": {key: donor, "n": 3}}, key=key), donor)


def test_what_lies_outside_the_network_is_dropped_by_name(network, tmp_path, donor):
    state = {**body(donor), **under("projector.", PROJECTION), **QUEUE}
    report = loaded(network, tmp_path, state)
    check(network, report, donor)
    assert set(report.dropped) == {*under("projector.", PROJECTION), *QUEUE}
    assert any(n.startswith("not of resnet18, dropped: projector.0.weight") for n in report.notes)
    # A file whose head is wanted has to fit, all of it.
    with pytest.raises(UserError, match="5 unexpected: projector"):
        loaded(zoo.build("resnet18", 10), tmp_path, {**state, **donor}, keep_head=True)


def test_less_than_fits_is_never_loaded(network, tmp_path, donor):
    deeper = zoo.build("resnet34", 10).model.state_dict()  # all of ResNet-18 is in it, by name
    with pytest.raises(UserError, match=r"unexpected: layer1\.2"):
        loaded(network, tmp_path, under("backbone.", deeper))
    lacking = {n: v for n, v in donor.items() if not n.startswith("layer3.1")}
    with pytest.raises(UserError, match=r"10 missing: layer3\.1"):
        loaded(network, tmp_path, under("backbone.", lacking))
    few = {n: v for n, v in donor.items() if n.startswith("layer1")}  # less than half
    with pytest.raises(UserError, match="Only 0 of 122 names fit"):
        loaded(network, tmp_path, under("backbone.", few))


def test_a_key_for_what_is_no_file_is_refused(network):
    for chosen in (None, "DEFAULT"):
        with pytest.raises(UserError, match=r"model\.weights_key is about"):
            weights.load(network, chosen, key="teacher")


parts = st.lists(st.sampled_from(["a", "b", "module", "encoder_q", "layer1"]), max_size=3)
names = st.lists(
    st.lists(st.sampled_from(["layer1", "conv", "0", "weight"]), min_size=1, max_size=3),
    min_size=1, max_size=6, unique_by=tuple,
)  # fmt: skip


@given(parts, names)
def test_a_prefix_before_all_names_is_found_unless_names_are_their_own_ends(prefix, found):
    wanted = {".".join(name) for name in found}
    start = "".join(f"{part}." for part in prefix)
    seen = common_prefix([start + name for name in wanted], wanted, "file")
    ends = any(a != b and a.endswith(f".{b}") for a in wanted for b in wanted)
    if not ends and not any((start + name) in wanted for name in wanted):
        assert seen == start


def test_a_name_of_a_million_parts_takes_no_time():
    assert common_prefix([".".join("a" * 10**6)], {"a.b", "c"}, "file") == ""


def test_a_flat_key_is_taken_from_a_safetensors_file(tmp_path, donor):
    from safetensors.torch import save_file

    save_file(under("student.", {"a": torch.zeros(1)}), tmp_path / "a.safetensors")
    assert set(weight_files.read(tmp_path / "a.safetensors", "student")) == {"a"}
