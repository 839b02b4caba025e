"""A network of the first stages of another is those stages, and nothing of the rest."""

import pytest
import torch

from tl.errors import UserError
from tl.models import saved, weights, zoo
from tl.models.load_report import by_stage
from tl.models.network import head_parameters
from tl.models.preprocessing import preprocessing_of

FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11_bn", "vit_b_32",
]  # fmt: skip
# One small network of each kind of output, and how many stages are kept.
CUTS = [
    ("resnet18", 3), ("squeezenet1_1", 4), ("googlenet", 5), ("vit_b_32", 2), ("swin_t", 2),
    ("timm:resnet10t", 3), ("timm:vit_tiny_patch16_224", 3),
    ("timm:swin_tiny_patch4_window7_224", 2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """For one small image, threads that wait for each other on a busy machine cost far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "kept"), CUTS)
def test_the_kept_stages_put_out_what_those_of_the_whole_network_do(name, kept):
    whole = zoo.build(name, 5, 64).eval()
    part = zoo.build(name, 3, 64, keep=kept).eval()
    report = weights.fit(part, whole.model.state_dict(), "whole", keep_head=False)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = whole.features(x, kept)
        stages = [stage.name for stage in part.stages]
        assert stages == [*(stage.name for stage in whole.stages[:kept]), "head"]
        if expected.dim() == 3:  # both ViTs read the class token
            expected = expected[:, 0]
        elif expected.dim() == 4:
            expected = expected.mean([1, 2] if "swin" in name else [2, 3])
        torch.testing.assert_close(part.features(x, kept - 1), whole.features(x, kept - 1))
        expected = torch.nn.functional.layer_norm(expected, expected.shape[1:])
        assert torch.equal(part.features(x, kept), expected)
        torch.testing.assert_close(part(x), part.model.reuse_head(expected))
    # Nothing of the rest is there, and the report has every name of the file once.
    mine, theirs = part.model.state_dict(), whole.model.state_dict()
    cut_off = {key for key in theirs if whole.stage_of(key) not in stages or key not in mine}
    assert set(mine) - {"reuse_head.weight", "reuse_head.bias"} == set(theirs) - cut_off
    assert set(report.new) == set(head_parameters(part)) == set(mine) - set(report.names)
    assert set(report.dropped) == cut_off
    rows = by_stage(part, report)
    assert sum(row.loaded for row in rows) == report.loaded
    assert sum(row.dropped for row in rows) == len(cut_off)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_every_family_can_be_cut(name):
    """Of their parameters and outputs only the shapes; every cut is below, slow."""
    _cut_and_check(name, [2])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_every_family_can_be_cut_after_every_stage(name):
    with device(name):
        number = len(zoo.build(name, 3).stages) - 1
    _cut_and_check(name, range(1, number))


def device(name):
    """Where shapes are all there is; RegNet's builder computes with its own numbers."""
    return torch.device("cpu" if name.startswith("regnet") else "meta")


def _cut_and_check(name, cuts):
    for kept in cuts:
        with device(name):
            network = zoo.build(name, 3, keep=kept)
            again = zoo.rebuild(network.architecture, network.arguments)
        with torch.no_grad():
            x = torch.zeros(2, 3, 224, 224, device=device(name))
            assert network.train()(x).shape == again.eval()(x).shape == (2, 3)
        assert len(network.stages) == kept + 1
        assert not any(stage.aux for stage in network.stages)
        state = network.model.state_dict()
        assert {network.stage_of(key) for key in state} == {s.name for s in network.stages}
        assert list(state) == list(again.model.state_dict())


def test_a_saved_part_is_small_and_comes_back(tmp_path):
    whole, part = zoo.build("resnet18", 3), zoo.build("resnet18", 3, keep="layer1")
    for network, folder in ((whole, tmp_path / "whole"), (part, tmp_path / "part")):
        saved.save(network, ["a", "b", "c"], preprocessing_of("resnet18", None), folder)
    size = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("whole", "part")}
    assert size["part"] < 4 * 200_000 < size["whole"] / 50  # of 157,507 parameters
    loaded = saved.load(tmp_path / "part").network
    assert loaded.arguments == {"num_classes": 3, "kept_stages": 2}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), part.eval()(x))
    # It goes on: its own head, a new one, a shorter network; not a longer one.
    folder = str(tmp_path / "part")
    again = zoo.build("resnet18", 3, keep=2)
    assert weights.load(again, folder, keep_head=True).new == ()
    assert len(weights.load(zoo.build("resnet18", 7, keep=2), folder).new) == 2
    assert len(weights.load(zoo.build("resnet18", 7, keep=1), folder).new) == 2
    for keep in (None, 3):
        with pytest.raises(UserError, match=r"Give model\.reuse\.stages=2, or fewer"):
            weights.load(zoo.build("resnet18", 3, keep=keep), folder)


def test_dropout_of_a_part_is_that_of_the_images():
    """Cutting must not lose the link from the network to the layers that ask it for keys."""
    network = zoo.build("vit_b_32", 3, 64, keep=2)
    for module in network.modules():
        if type(module).__name__ == "ImageDropout":
            module.p = 0.5
            assert module.draws is network.draws
    x = torch.randn(2, 3, 64, 64)
    network.expect({"key": torch.tensor([1, 2]), "weight": torch.ones(2)})
    with torch.no_grad():
        torch.manual_seed(0)
        first = network.train()(x)
        torch.manual_seed(1)
        assert torch.equal(network(x), first)


def test_all_stages_are_the_whole_network():
    network = zoo.build("resnet18", 3, keep=5)
    assert network.arguments == {"num_classes": 3}
    assert network.stages[-1].owns == ("fc",)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("layer9", r"unknown stage of resnet18 'layer9'.*Did you mean 'layer\d'.*Known: layer1"),
        ("head", "unknown stage"),
        (6, r"has 5 stages before its head, so 6 .*Known: 1 stem, 2 layer1"),
        (0, "so 0 of them cannot be kept"),
    ],
)
def test_a_stage_that_there_is_not_is_refused_with_those_that_there_are(keep, message):
    with pytest.raises(UserError, match=message):
        zoo.build("resnet18", 3, keep=keep)


@pytest.mark.parametrize("kept", [0, 9, 10**9, True, "3", [1]])
def test_a_folder_with_an_absurd_cut_is_one_clear_error(kept):
    with pytest.raises(UserError, match=r"kept_stages|cannot be kept"):
        zoo.rebuild("resnet18", {"num_classes": 2, "kept_stages": kept})
