"""Position embeddings of another image size are interpolated as the network's library does it."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from tl.errors import UserError
from tl.models import weights, zoo

VIT, SWIN = "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"


def test_a_vit_of_timm_gets_timms_own_interpolation(tmp_path):
    state = zoo.build(VIT, 5, 64).model.state_dict()
    network = zoo.build(VIT, 3, 96)
    torch.save(state, tmp_path / "vit.pth")
    report = weights.load(network, str(tmp_path / "vit.pth"))
    expected = resample_abs_pos_embed(state["pos_embed"], [6, 6])
    assert torch.equal(network.model.pos_embed, expected)
    assert torch.equal(network.model.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert report.notes == ("pos_embed: interpolated from (1, 17, 192) to (1, 37, 192)",)
    assert set(report.new) == {"head.weight", "head.bias"}


def test_tables_of_a_swin_of_timm_follow_its_windows(tmp_path):
    """At 64 pixels its second stage has 8 × 8 places and the third 4 × 4: less than 7 × 7."""
    large, small = zoo.build(SWIN, 5, 224), zoo.build(SWIN, 3, 64)
    state = large.model.state_dict()
    report = weights.fit(small, state, "swin", keep_head=False)
    mine = small.model.state_dict()
    resized = {name for name in state if name in mine and mine[name].shape != state[name].shape}
    tables = {name for name in resized if "relative_position_bias_table" in name}
    assert tables
    assert {note.partition(":")[0] for note in report.notes} == tables
    for name in tables:
        side, before = (round(len(t) ** 0.5) for t in (mine[name], state[name]))
        middle = mine[name][side * side // 2], state[name][before * before // 2]
        torch.testing.assert_close(*middle, rtol=1e-4, atol=1e-5)  # no displacement at all
    for name in set(mine) - resized - set(report.new):
        assert torch.equal(mine[name], state[name]), name


@pytest.mark.parametrize(("name", "sizes"), [("swin_t", (64, 224)), ("maxvit_t", (224, 448))])
def test_tables_of_torchvision_do_not_follow_the_image(name, sizes):
    with torch.device("meta"):
        one, other = (
            {n: v.shape for n, v in zoo.build(name, 2, size).model.state_dict().items()}
            for size in sizes
        )
    assert one == other


def test_positions_of_no_square_grid_are_refused(tmp_path):
    state = dict(zoo.build(VIT, 5, 64).model.state_dict())
    state["pos_embed"] = state["pos_embed"][:, :12]
    with pytest.raises(UserError, match=r"pos_embed \(1, 12, 192\) instead of \(1, 37, 192\)"):
        weights.fit(zoo.build(VIT, 3, 96), state, "vit", keep_head=False)
