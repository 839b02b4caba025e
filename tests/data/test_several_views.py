"""Several views of an image at once are those that a plain loop makes one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tl.data.images import read_rgb, read_shrunk
from tl.data.several_views import SCALE, several_views, views_in
from tl.data.transforms import augmented_view, plain_view, seeded
from tl.models.preprocessing import Preprocessing

RECIPE = Preprocessing(40, 32, (0.5,) * 3, (0.2,) * 3, "bilinear")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Large enough to be decoded at a half."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((300, 200)).save(tmp_path / "x.jpg", quality=95)
    return tmp_path / "x.jpg"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_they_are_those_of_a_plain_loop(photo: Path, count: int) -> None:
    image = read_rgb(photo)
    together = several_views(RECIPE, count)(image)
    assert together.shape == (3, 32 * count, 32)
    batch = torch.stack([together.permute(1, 2, 0)] * 2).permute(0, 3, 1, 2)
    views = views_in(batch)
    assert len(views) == count
    random = augmented_view(RECIPE, "standard", SCALE)
    for number, view in enumerate(views):
        expected = plain_view(RECIPE)(image) if number == 0 else seeded(random, image, number)
        assert torch.equal(view, torch.stack([expected] * 2))
    assert len({view.sum().item() for view in views}) == count, "no two are the same"


def test_an_image_is_decoded_large_enough_for_each(photo: Path) -> None:
    view = several_views(RECIPE, 4)
    shrunk = read_shrunk(photo, view.least)
    assert not shrunk.is_whole
    needed = [plain_view(RECIPE).least((300, 200))]
    random = augmented_view(RECIPE, "standard", SCALE)
    needed += [seeded(random.least, (300, 200), number) for number in (1, 2, 3)]
    assert shrunk.image.width >= max(width for width, _ in needed)
    assert shrunk.image.height >= max(height for _, height in needed)
    # As tests/data/test_decode.py bounds it for one view.
    difference = view(read_rgb(photo)).float() - view(shrunk).float()
    assert difference.abs().mean() < 0.8
